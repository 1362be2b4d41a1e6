"""More edges, larger networks, bit widths of many layers, strangers."""
