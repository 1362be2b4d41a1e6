"""Refinement: the wire formats that the most promising cuts deserve."""
