"""Adaptive unmasking: `orders` (which masks first, and how many), `unmask` (the sampler and its moves)."""
