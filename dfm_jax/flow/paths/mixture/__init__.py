"""The mixture path: `path` (its law), `velocities` (processes with its p_t)."""
