"""Latency tables: latency of each segment of each plan on each device."""
