"""Bytes against accuracy."""
