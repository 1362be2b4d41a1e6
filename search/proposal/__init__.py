"""Proposals: a new bundle from what served frames took."""
