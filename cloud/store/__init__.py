"""The store: what frames took, kept in SQLite."""
