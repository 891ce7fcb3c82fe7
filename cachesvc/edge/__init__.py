"""The network edge that both shells stand behind: listeners, strict HTTP, TLS."""
