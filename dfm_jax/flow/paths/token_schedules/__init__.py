"""Paths with one schedule per token: `base` (what they share), `kinetic_optimal` and `genmd4` (law, loss), `steps`."""
