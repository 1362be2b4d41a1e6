"""Tasks: from a network's outputs to results that people want."""
