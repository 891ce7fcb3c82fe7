"""Text to vector: the port, the local model, and remote providers."""
