"""Discrete flow matching for text in JAX: `flow` is the mathematics, `load` a trained model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfm_jax import flow
    from dfm_jax.run.load import load

__all__ = ["flow", "load"]


def __getattr__(name: str) -> Any:
    # On demand: `dfm_jax.flow` is cheap to import, `load` brings the model, the data and the checkpoints with it.
    if name == "load":
        from dfm_jax.run.load import load

        return load
    if name == "flow":
        import importlib

        return importlib.import_module("dfm_jax.flow")
    raise AttributeError(f"module 'dfm_jax' has no attribute {name!r}")
