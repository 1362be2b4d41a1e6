"""Measurements: latency and accuracy of candidates, as they are deployed."""
