"""Shell 2: sits in front of the upstream, and fails open."""
