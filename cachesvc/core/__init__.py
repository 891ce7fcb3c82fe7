"""The pure core: no await, no clock, no environment, no logger."""
