"""The stream of messages between this edge and its cloud."""
