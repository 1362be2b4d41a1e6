"""The network: its graph, importer, optimisation passes, execution, cuts and losses."""
