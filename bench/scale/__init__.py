"""One cloud with many edges, and with strangers."""
