"""Capture: sources of frames and the loop that runs them through a detector."""
