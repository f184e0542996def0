"""The three-term path: `path` (law, losses, velocities), `steps`."""
