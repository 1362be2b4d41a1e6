"""The stream: messages between this edge and its cloud."""
