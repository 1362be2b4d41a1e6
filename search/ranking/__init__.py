"""Ranking: one search run, and what stands in the way when nothing fits."""
