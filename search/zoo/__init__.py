"""The zoo: trained networks that can be split, and readers for their files."""
