"""Planning: which plan serves the next frame."""
