"""More edges, larger networks, strangers."""
