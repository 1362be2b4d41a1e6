"""Stages of a search by themselves: profiles, bit configurations, quantization."""
