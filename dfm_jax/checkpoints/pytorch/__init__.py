"""Reads and writes the PyTorch checkpoints of the reference, without PyTorch."""

from dfm_jax.checkpoints.pytorch.training_file import (
    ImportedCheckpoint,
    check_exportable,
    infer_source,
    read_checkpoint,
    write_checkpoint,
)
from dfm_jax.checkpoints.pytorch.weights import read_weights, weights_of, write_weights

__all__ = [
    "ImportedCheckpoint",
    "check_exportable",
    "infer_source",
    "read_checkpoint",
    "read_weights",
    "weights_of",
    "write_checkpoint",
    "write_weights",
]
