"""The demo: the whole product on one machine, on real pictures, in a few minutes."""
