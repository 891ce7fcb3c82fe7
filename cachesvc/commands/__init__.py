"""The commands: each parses, calls, prints, and nothing else."""
