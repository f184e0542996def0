"""The checkpoint formats of other programs. Each is an entry of `LAYOUTS`, with its reader and its writer."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import optax

from dfm_jax.checkpoints import pytorch
from dfm_jax.models.transformer import Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class Export:
    """What a layout may write.

    network: {"group.field": value} of the config, what the network's output means. moments: of Adam. hyperparameters:
    lr, beta1, beta2, eps, weight_decay.
    """

    model: Transformer
    config: TransformerConfig
    step: int  # updates applied
    network: Mapping[str, Any]
    moments: optax.ScaleByAdamState | None = None
    hyperparameters: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One format.

    Attributes:
        suffix: of the files' names.
        holds: what a file holds, in words.
        begins: whether a file whose first 16 bytes are these has this format.
        read: (path, fields of `TransformerConfig` that must agree) -> what the file holds. Raises ValueError.
        write: (path, what to write). The file appears whole or not at all. Raises ValueError for an unsupported model.
        check: raises that ValueError before anything is loaded.
        training: whether a file has the optimizer's moments, so that training can continue from it.
        only: the fields of a config that the format cannot store, each with the value that its readers assume.
    """

    suffix: str
    holds: str
    begins: Callable[[bytes], bool]
    read: Callable[[str | os.PathLike, Mapping[str, Any]], pytorch.ImportedCheckpoint]
    write: Callable[[str | os.PathLike, Export], None]
    check: Callable[[TransformerConfig], None]
    training: bool
    only: Mapping[str, Any]


def _write_weights(path: str | os.PathLike, export: Export) -> None:
    pytorch.write_weights(path, export.model, config=export.config, step=export.step, network=export.network)


def _write_training_file(path: str | os.PathLike, export: Export) -> None:
    moments: Any = export.moments
    assert moments is not None
    pytorch.write_checkpoint(
        path,
        export.model,
        config=export.config,
        step=export.step,
        mu=moments.mu,
        nu=moments.nu,
        count=int(moments.count),
        hyperparameters=export.hyperparameters,
    )


LAYOUTS: dict[str, Layout] = {
    "safetensors": Layout(
        suffix="safetensors",
        holds="the weights",
        begins=lambda head: head[8:9] == b"{",
        read=pytorch.read_weights,
        write=_write_weights,
        check=lambda config: None,
        training=False,
        only={},
    ),
    "pytorch": Layout(
        suffix="pth",
        holds="weights and moments",
        begins=lambda head: head.startswith(b"PK"),
        read=pytorch.read_checkpoint,
        write=_write_training_file,
        check=pytorch.check_exportable,
        training=True,
        only={"model.parametrization": "posterior", "model.time_input": "t"},
    ),
}


def layout_of(path: str | os.PathLike) -> Layout:
    """The layout of a file: by its first bytes, else by its name, else the first one, whose reader then raises.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    told = [layout for layout in LAYOUTS.values() if layout.begins(head)]
    named = [layout for layout in LAYOUTS.values() if pathlib.Path(path).suffix == f".{layout.suffix}"]
    return (told or named or list(LAYOUTS.values()))[0]
