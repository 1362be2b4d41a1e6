"""Benchmark of the planner's adaptation."""
