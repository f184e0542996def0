"""A published folder, or its config and tensors, as weights of ours and as what their numbers mean."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dfm_jax.checkpoints import pytorch
from dfm_jax.checkpoints.published import folder as folders
from dfm_jax.checkpoints.published import layouts, names
from dfm_jax.checkpoints.published.layouts import LAYOUTS, OURS, REFERENCE, PublishedLayout
from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.models.transformer import TransformerConfig

# Names of a size in config.json, the flat form and SEDD's, and in `TransformerConfig`.
_SIZES = {
    "hidden_dim": "hidden_size",
    "hidden_size": "hidden_size",
    "cond_dim": "cond_dim",
    "n_blocks": "n_blocks",
    "n_heads": "n_heads",
}
_LENGTHS = ("model_length", "length")
_LOG_LINEAR = -math.log(1e-3)  # the largest sigma of the log-linear noise, at its end
FindMask = Callable[[str, int], int | None]


@dataclasses.dataclass(frozen=True)
class Published:
    """What a folder holds.

    Attributes:
        layout: a name of `layouts.LAYOUTS`, or `layouts.OURS`.
        imported: the weights, with zero moments. Its `network` are fields of a config: what the numbers mean.
        fields: other fields that the folder tells: the loss, the form of the rows.
        mask_id: where the mask's row is in the file; None without a mask, or where a reader of another kind read it.
        run: of a folder of ours the whole config, {group: {field: value}}; else None.
    """

    layout: str
    imported: pytorch.ImportedCheckpoint
    fields: Mapping[str, Any]
    mask_id: int | None = None
    run: Mapping[str, Mapping[str, Any]] | None = None


def read(
    folder: pathlib.Path,
    *,
    weights: pathlib.Path | None = None,
    layout: str | None = None,
    mask_id: FindMask | int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Published:
    """Reads a folder with config.json and weights, of a published project or of `--format=hub`.

    Args:
        folder: see `published.folder`.
        weights: the file of its tensors; None is the one of that name.
        layout: a name of `LAYOUTS`; None is what config.json says.
        mask_id: the mask's id in a vocabulary of MDLM's that holds it, or a function of the layout and the number of
            states that gives it; None is the last one.
        options: fields of `TransformerConfig` for the reference's layout, whose tensors do not tell them.

    Raises:
        ValueError: one line that names what is missing, unknown, or does not fit.
        OSError, WorldError: a file cannot be read.
    """
    config = folders.read_config(folder)
    tensors, metadata = folders.read_tensors(folder, weights)
    return of_tensors(config, tensors, metadata, layout=layout, mask_id=mask_id, options=options, place=str(folder))


def of_tensors(
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    *,
    layout: str | None = None,
    mask_id: FindMask | int | None = None,
    options: Mapping[str, Any] | None = None,
    place: str = "the folder",
) -> Published:
    """`read` of what the folder holds."""
    try:
        name = layouts.which(config, tensors, layout)
        if name == OURS:
            return _ours(config, tensors, metadata)
        entry = LAYOUTS[name]
        if entry is None:
            found = pytorch.weights_of(tensors, metadata, _reference_options(config) | dict(options or {}))
            return Published(REFERENCE, found, {})
        return _published(name, entry, config, tensors, mask_id)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _ours(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Published:
    run = config.get("run")
    if not isinstance(run, Mapping) or not all(isinstance(group, Mapping) for group in run.values()):
        raise ValueError("config.json run = (missing): expected the config of a run, as --format=hub writes it")
    return Published(OURS, pytorch.weights_of(tensors, metadata, {}), {}, run=run)


def _reference_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json beside the reference's tensors may say of them."""
    told = _told_sizes(config)
    found = {name: value for name, (_, value) in told.items()}
    for name in _LENGTHS:
        if name in config:
            found["length"] = _integer(config, name)
    return found


def _published(
    name: str,
    layout: PublishedLayout,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    mask_id: FindMask | int | None,
) -> Published:
    nested = name == "sedd"
    model = config.get("model", {}) if nested else config
    if not isinstance(model, Mapping):
        raise ValueError(f"config.json model = {model}: expected an object")
    _refuse_others(name, config, tensors, layout.prefix)
    length = next((_integer(model, key) for key in _LENGTHS if key in model), None)
    if length is None:
        raise ValueError(f"config.json {'length' if nested else 'model_length'} = (missing): expected a number")
    implied: dict[str, Any] = dict(names.sizes(tensors, layout.prefix))
    told: dict[str, Any] = {name: value for name, (_, value) in _told_sizes(model).items()}
    states = _states(config, nested)
    if states is not None:
        told["vocab_size"] = states
    conditioned = model.get("time_conditioning", layout.time_conditioning)
    dropout = model.get("dropout", TransformerConfig.dropout)
    if not isinstance(conditioned, bool):
        raise ValueError(f"config.json time_conditioning = {conditioned}: expected true or false")
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise ValueError(f"config.json dropout = {dropout}: expected a number in [0, 1)")
    architecture = TransformerConfig(
        **(implied | told), length=length, dropout=float(dropout), time_conditioning=conditioned
    )
    names.check(tensors, architecture, layout.prefix)
    found = names.to_reference(tensors, layout.prefix)
    states = architecture.vocab_size
    place = _mask(layout, states, mask_id(name, states) if callable(mask_id) else mask_id)
    if place is not None:
        found = names.mask_last(found, place)
    weights = convert.from_tensors(found, architecture)
    zeros = jax.tree.map(np.zeros_like, weights)
    network = {
        "flow.path": "mixture",
        "flow.source_distribution": layout.source,
        "flow.scheduler_type": "polynomial",
        "flow.exponent": 1.0,
        "model.n_heads": architecture.n_heads,
        "model.parametrization": layout.parametrization,
        "model.suppress_mask_logit": True,
        "model.time_input": "sigma" if conditioned or layout.source == "uniform" else "t",
        "model.largest_sigma": _largest_sigma(config) if conditioned else _LOG_LINEAR,
        "model.time_scale": 1.0,
        "model.time_conditioning": conditioned,
    }
    imported = pytorch.ImportedCheckpoint(architecture, weights, zeros, zeros, count=0, step=0, network=network)
    return Published(name, imported, {"flow.loss_function": layout.loss, "data.packing": layout.packing}, place)


def _refuse_others(name: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], prefix: str) -> None:
    """ValueError for weights of the project that this network does not hold."""
    graph = config.get("graph")
    if name == "sedd" and isinstance(graph, Mapping) and graph.get("type") != "absorb":
        raise ValueError(
            f"config.json graph.type = {graph.get('type')}: expected absorb; weights of another graph are not read"
        )
    guided = f"{prefix}cond_map.embedding_table.weight"
    if guided in tensors:
        raise ValueError(f"{guided}: class-conditional weights; expected a network that is told no class")
    if config.get("cfg"):
        raise ValueError("config.json cfg = true: class-conditional weights; expected a network that is told no class")
    if config.get("causal"):
        raise ValueError(
            "config.json causal = true: an autoregressive network; expected one that is told its noisy tokens"
        )


def _told_sizes(config: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """{field of TransformerConfig: (name in config.json, value)} of the sizes that it has."""
    return {field: (name, _integer(config, name)) for name, field in _SIZES.items() if name in config}


def _states(config: Mapping[str, Any], nested: bool) -> int | None:
    """The states that config.json says the network has: SEDD's `tokens` are those of its data, without the mask."""
    if nested:
        return _integer(config, "tokens") + 1 if "tokens" in config else None
    return _integer(config, "vocab_size") if "vocab_size" in config else None


def _integer(config: Mapping[str, Any], name: str) -> int:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json {name} = {value}: expected an integer above 0")
    return value


def _mask(layout: PublishedLayout, states: int, mask_id: int | None) -> int | None:
    """The mask's row in the file, or None for a source without masks."""
    last = states - 1
    if layout.source != "mask":
        if mask_id is not None:
            raise ValueError(f"mask_id = {mask_id}: expected none, as these weights have the {layout.source} source")
        return None
    if mask_id is None:
        return last
    if not 0 <= mask_id <= last or (mask_id != last and not layout.mask_inside):
        expected = f"an id from 0 to {last}" if layout.mask_inside else f"{last}, where this layout has it"
        raise ValueError(f"mask_id = {mask_id}: expected {expected}")
    return mask_id


def _largest_sigma(config: Mapping[str, Any]) -> float:
    """Where the noise that the network was trained on ends."""
    noise = config.get("noise")
    kind = noise.get("type", "loglinear") if isinstance(noise, Mapping) else "loglinear"
    if kind == "geometric" and isinstance(noise, Mapping):
        largest = noise.get("sigma_max")
        if isinstance(largest, bool) or not isinstance(largest, (int, float)) or largest <= 0:
            raise ValueError(f"config.json noise.sigma_max = {largest}: expected a number above 0")
        return float(largest)
    if kind != "loglinear":
        raise ValueError(f"config.json noise.type = {kind}: expected loglinear or geometric")
    return _LOG_LINEAR
