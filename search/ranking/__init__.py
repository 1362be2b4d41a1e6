"""Ranking: one search run, and an explanation when no plan is feasible."""
