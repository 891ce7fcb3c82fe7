"""Bytes to nouns and back, one file per provider protocol. Pure."""
