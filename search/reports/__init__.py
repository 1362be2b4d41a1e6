"""Reports: what was chosen, against what, and why."""
