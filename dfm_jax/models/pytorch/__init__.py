"""PyTorch checkpoints of the reference in and out, without PyTorch."""

from dfm_jax.models.pytorch.checkpoint import (
    ImportedCheckpoint,
    check_exportable,
    infer_source,
    read_checkpoint,
    write_checkpoint,
    write_weights,
)

__all__ = [
    "ImportedCheckpoint",
    "check_exportable",
    "infer_source",
    "read_checkpoint",
    "write_checkpoint",
    "write_weights",
]
