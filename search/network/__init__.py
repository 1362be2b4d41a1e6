"""The network: a graph of operators, where it comes from, what runs it, where it may be cut."""
