"""Allocation: how many bits each tensor on the edge gets when memory and time are short."""
