"""The original Auto-Split's experiment: its networks, its steps and the chart it published."""
