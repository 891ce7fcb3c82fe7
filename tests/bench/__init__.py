"""Benchmarks: each figure beside its floor, both measured in one run. `make bench` runs them."""
