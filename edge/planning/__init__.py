"""Planning: the online choice of the plan for the next frame."""
