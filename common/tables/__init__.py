"""Latency tables: what each segment of each plan takes on each device."""
