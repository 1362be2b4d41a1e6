"""How well the planner adapts."""
