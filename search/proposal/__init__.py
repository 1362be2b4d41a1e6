"""Proposals: a new bundle based on observed latencies."""
