"""Images: from bytes to a network's input, and results drawn for people."""
