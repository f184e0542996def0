"""What a run says while it runs: on the terminal, and as metrics in files."""

from dfm_jax.metrics import MetricsWriter
from dfm_jax.terminal import Progress, note, warn

__all__ = ["MetricsWriter", "Progress", "note", "warn"]
