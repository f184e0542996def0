"""The metric path: `path` (law, loss, velocity), `beta` (inverse temperatures), `steps`."""
