"""Link estimation on the edge."""
