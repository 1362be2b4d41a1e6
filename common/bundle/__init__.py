"""The bundle: what a search decides and two processes serve."""
