"""Discrete flow matching for text in JAX.

flow                                    the mathematics: paths, sources, losses, samplers
train, prepare                          a run of a config, and its corpora
load, sample, evaluate                  a trained run: its texts, its figures (also `frontier` and `compare`)
import_weights, export                  checkpoints of other programs, and for them
plan, benchmark                         what a config needs on a machine that is not here, and does on the one that is

Nothing heavy is imported before it is used; importing changes no setting of Python, of jax or of `logging`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dfm_jax import flow
    from dfm_jax.api import (
        benchmark,
        compare,
        evaluate,
        export,
        frontier,
        import_weights,
        load,
        plan,
        prepare,
        sample,
        train,
    )

__all__ = [
    "benchmark",
    "compare",
    "evaluate",
    "export",
    "flow",
    "frontier",
    "import_weights",
    "load",
    "plan",
    "prepare",
    "sample",
    "train",
]


def __getattr__(name: str):
    if name == "flow":
        import importlib

        return importlib.import_module("dfm_jax.flow")
    if name in __all__:
        from dfm_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'dfm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
