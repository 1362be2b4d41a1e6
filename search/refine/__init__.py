"""Refinement: a search for the best wire formats of the most promising cuts."""
