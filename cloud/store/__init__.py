"""The store: observations of served frames, kept in SQLite."""
