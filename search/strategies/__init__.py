"""Strategies: how published work chooses a cut, as baselines for the search."""
