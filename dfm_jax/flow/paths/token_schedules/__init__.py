"""Paths with a schedule for each token: `base` (what is shared), `kinetic_optimal`, `genmd4` (law, loss), `steps`."""
