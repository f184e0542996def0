"""What a new run starts from (`checkpoint.restore_from`): another run, a folder or file of weights, or hf:NAME.

Every array that has the same name and shape is taken. Blocks are counted one by one: of a run with fewer or more, those
that both have. The others are initialised, and a line says which.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checkpoints import published, pytorch, tree_names
from dfm_jax.checkpoints.layouts import layout_of
from dfm_jax.checkpoints.published import hub
from dfm_jax.checkpoints.published.folder import CONFIG, WEIGHTS
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.run.load import EVALUATED
from dfm_jax.run.network import check_restorable, in_groups, split_reference
from dfm_jax.run.publishing.tokens import Vocabulary
from dfm_jax.runtime.errors import WorldError
from dfm_jax.training.state import TrainState

FIELD = "config.checkpoint.restore_from"
_BLOCKS = "blocks."
_FEW = 6
Structs = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Weights to start from.

    Attributes:
        name: for messages.
        shapes: of its arrays, by name ("embedding.table.value").
        read: arrays by name, with the dtype and the sharding that is asked for, and the step that they are of.
    """

    name: str
    shapes: Structs
    read: Callable[[Structs], tuple[int, dict[str, jax.Array]]]


def find(config: Config) -> Origin | None:
    """What `checkpoint.restore_from` names, its meaning checked; None where it names nothing.

    Raises:
        WorldError: there is nothing of the kind. UsageError: its network means another thing.
    """
    text = config.checkpoint.restore_from
    if not text:
        return None
    if text.startswith(hub.PREFIX):
        return _of_weights(config, hub.fetch(text, FIELD), text)
    folder, step = split_reference(text)
    checkpoints = Checkpoints(folder / "checkpoints")
    if checkpoints.latest_step() is not None:
        check_restorable(checkpoints.metadata(step).get("config", {}), config, folder)
        return _of_run(checkpoints, folder, step)
    place = pathlib.Path(text)
    if place.is_file() or any((place / name).is_file() for name in WEIGHTS):
        return _of_weights(config, place, text)
    raise WorldError(
        f"{FIELD} = {text}: expected the folder of a run with a checkpoint, a folder with {WEIGHTS[0]}, or hf:NAME"
    )


def take(origin: Origin, state: TrainState) -> tuple[TrainState, list[str]]:
    """`state`, of step 0, with the arrays of `origin` that fit, and lines that say what was taken and what was not.

    Raises WorldError where no array of the blocks and none of the vocabulary fits.
    """
    own = tree_names.flatten(state.model)
    wanted = {
        name: jax.ShapeDtypeStruct(origin.shapes[name].shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in own.items()
        if name in origin.shapes and _fits(name, leaf.shape, origin.shapes[name].shape)
    }
    if not any(name.startswith((_BLOCKS, "embedding.table", "head.kernel")) for name in wanted):
        raise WorldError(
            f"{FIELD} = {origin.name}: expected weights of which some fit this model; {_some(_misfits(own, origin))}"
        )
    step, read = origin.read(wanted)
    found = {name: _put(leaf, read[name]) if name in read else leaf for name, leaf in own.items()}
    model = tree_names.unflatten(state.model, found)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, model)
    lines = [f"weights of {origin.name}, step {step}"]
    if new := _misfits(own, origin):
        size = sum(int(np.prod(leaf.shape)) for leaf in own.values())
        taken = sum(min(int(np.prod(own[n].shape)), int(np.prod(s.shape))) for n, s in wanted.items())
        lines.append(f"taken: {100 * taken / size:.1f} % of the parameters; initialised: {_some(new)}")
    if unused := sorted(origin.shapes.keys() - own.keys()):
        lines.append(f"left out, as this model has none: {_some(list(map(_short, unused)))}")
    return dataclasses.replace(state, model=model, ema=ema), lines


def _fits(name: str, here: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """Whether an array is taken, or of the stacked blocks those that both have."""
    return here == there or (name.startswith(_BLOCKS) and here[1:] == there[1:])


def _put(leaf: jax.Array, value: jax.Array) -> jax.Array:
    if leaf.shape == value.shape:
        return value
    count = min(len(leaf), len(value))
    return jax.device_put(jnp.concatenate([value[:count], leaf[count:]]), leaf.sharding)


def _misfits(own: Mapping[str, jax.Array], origin: Origin) -> list[str]:
    """What is initialised, with the reason."""
    found, blocks = [], set()
    for name, leaf in own.items():
        there = origin.shapes[name].shape if name in origin.shapes else None
        if there is None:
            found.append(f"{_short(name)} (not there)")
        elif not _fits(name, leaf.shape, there):
            found.append(f"{_short(name)} ({list(there)} and not {list(leaf.shape)})")
        elif len(leaf.shape) and leaf.shape != there and len(leaf) > there[0]:
            blocks.add(f"blocks {there[0]} to {len(leaf) - 1}")
    return [*sorted(blocks), *found]


def _short(name: str) -> str:
    return name.removesuffix(".value")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _of_run(checkpoints: Checkpoints, folder: pathlib.Path, step: int | None) -> Origin:
    shapes: dict[str, jax.ShapeDtypeStruct] = {}
    failure: WorldError | None = None
    for candidate in [step] if step is not None else reversed(checkpoints.steps()):
        try:
            shapes = checkpoints.arrays(candidate)
            break
        except WorldError as error:  # damaged; an older one has the same shapes
            failure = error
    if not shapes:
        assert failure is not None
        raise failure
    held = [part for part in EVALUATED if any(name.startswith(f"{part}.") for name in shapes)]
    prefix = f"{held[0] if held else EVALUATED[-1]}."
    of_model = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}

    def read(wanted: Structs) -> tuple[int, dict[str, jax.Array]]:
        return checkpoints.restore_subtree(dict(wanted), *EVALUATED, step=step)

    return Origin(str(folder), of_model, read)


def _of_weights(config: Config, place: pathlib.Path, text: str) -> Origin:
    imported = weights_in(config, place, text)
    told = in_groups({**imported.network, "model.n_heads": imported.config.n_heads})
    check_restorable(told, config, place, told_only=True)
    arrays = tree_names.flatten(imported.model)

    def read(wanted: Structs) -> tuple[int, dict[str, jax.Array]]:
        found: dict[str, jax.Array] = {
            name: jax.make_array_from_callback(
                struct.shape,
                struct.sharding,
                lambda index, name=name, dtype=struct.dtype: arrays[name][index].astype(dtype),
            )
            for name, struct in wanted.items()
        }
        return imported.step, found

    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in arrays.items()}
    return Origin(text, shapes, read)


def weights_in(config: Config, place: pathlib.Path, text: str) -> pytorch.ImportedCheckpoint:
    """The weights of a published folder, or of a file of one of `checkpoints.layouts`, and what they tell of their
    meaning. The tokenizer of `config` says where the mask is in a vocabulary that holds it.
    """
    try:
        if (place / CONFIG).is_file():
            return published.read(place, mask_id=Vocabulary(config.tokenizer.name, None).mask).imported
        file = place / WEIGHTS[0] if place.is_dir() else place
        return layout_of(file).read(file, {})
    except OSError as error:
        raise WorldError(f"{FIELD} = {text}: {error.filename}: {error.strerror}: expected a file to read") from error
    except ValueError as error:
        raise WorldError(f"{FIELD} = {text}: {' '.join(str(error).split())}") from error
