"""Capture: where frames come from."""
