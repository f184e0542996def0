"""What a run needs of memory at the very least, said before anything is allocated.

Only what cannot fit in any way is refused: the bounds here are below what a run really takes, which
`--mode=compile` tells exactly.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Sequence

from jax.sharding import Mesh

from dfm_jax import optim
from dfm_jax.config import TABLE, Config
from dfm_jax.data import vocabulary_size
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.mesh import axis_size

MODEL = ("model.hidden_size", "model.n_blocks", "model.mlp_ratio", "model.cond_dim", "tokenizer.name")
BATCH = ("model.length", "model.hidden_size", "model.n_blocks", "model.n_heads")


@dataclasses.dataclass(frozen=True)
class Need:
    """`size` bytes on each device, of `what`; `fields` are those that it comes from."""

    what: str
    size: int
    fields: tuple[str, ...]


def least_parameters(config: Config) -> int:
    """Numbers in the matrices of the network: all but biases, scales and what pads the vocabulary."""
    model = config.model
    tables = (1 if model.tie_embeddings else 2) * vocabulary_size(config.tokenizer.name) * model.hidden_size
    block = (4 + 2 * model.mlp_ratio) * model.hidden_size**2 + 6 * model.hidden_size * model.cond_dim
    return tables + model.n_blocks * block


def training(config: Config, mesh: Mesh) -> list[Need]:
    """The state, and what a part of a batch keeps for its backward pass; parameters split as far as the mesh can."""
    copies = 1 + optim.TABLE[config.optim.name].moments + (config.optim.ema_decay > 0)
    split = axis_size(mesh, ("fsdp", "tensor"))
    state = 4 * copies * least_parameters(config) // split
    rows = -(-config.training.batch_size // (axis_size(mesh, ("data", "fsdp")) * config.training.grad_accum))
    kept = rows * config.model.length * config.model.hidden_size * config.model.n_blocks
    item = 2 if config.model.residual_dtype == "bfloat16" else 4
    fields = ("training.batch_size", "training.grad_accum", *BATCH)
    return [
        Need("parameters, moments and average", state, MODEL),
        Need("residual stream of a batch", state + item * kept, fields),
        Need("attention of a batch", state + _scores(config, mesh, rows), fields),
    ]


def inference(config: Config, mesh: Mesh, fields: tuple[str, ...], rows: int, kept: int = 0) -> list[Need]:
    """Of a network that is whole on each device, one batch of `rows` sequences a device; `fields` say how many. kept:
    bytes beside it."""
    weights = 4 * least_parameters(config) // axis_size(mesh, ("fsdp", "tensor")) + kept
    stream = 2 * rows * config.model.length * config.model.hidden_size
    scores = _scores(config, mesh, rows)
    return [
        Need("parameters and residual stream of a batch", weights + stream, (*fields, *BATCH)),
        Need("parameters and attention of a batch", weights + scores, (*fields, *BATCH)),
    ]


def likelihood(config: Config, mesh: Mesh, blocks: int) -> list[Need]:
    """Of `eval.batch_size` sequences of a corpus of so many blocks."""
    rows = -(-min(config.eval.batch_size, blocks) // axis_size(mesh, ("data", "fsdp")))
    return inference(config, mesh, ("eval.batch_size",), rows)


def generation(config: Config, mesh: Mesh, field: str, num: int) -> list[Need]:
    """Of the sequences a device that `field` says, of `num` in all.

    With drafts each has `sampling.draft` inputs at once, whose features are kept while they are checked.
    """
    draft, rows = config.sampling.draft, min(config[field], -(-num // mesh.size))
    if draft == 1:
        return inference(config, mesh, (field,), rows)
    shared = num < mesh.size  # every device has all sequences, and a part of their inputs
    sequences = num if shared else rows
    kept = 2 * sequences * draft * config.model.length * config.model.hidden_size
    inputs = -(-num * draft // mesh.size) if shared else rows * draft
    if mesh.devices.flat[0].platform == "cpu":  # where they take turns
        inputs = min(inputs, sequences)
    return inference(config, mesh, ("sampling.draft", field), inputs, kept)


def of_training(config: Config, mesh: Mesh) -> list[Need]:
    """Everything that `--mode=train` does, its evaluations of a corpus apart (`likelihood`)."""
    needs = training(config, mesh)
    if config.eval.perplexity:
        needs += generation(config, mesh, "eval.sample_batch_size", config.eval.num_samples)
    return needs


def check(config: Config, mesh: Mesh, needs: Iterable[Need]) -> None:
    """Raises UsageError naming the fields, what they need and what there is, where that cannot be enough."""
    limit, where = there_is(mesh)
    for need in needs:
        # The devices that are simulated on a processor share its memory.
        shares = len(mesh.local_devices) if mesh.devices.flat[0].platform == "cpu" else 1
        if limit is not None and need.size * shares > limit:
            blamed, *others = _by_excess(config, need.fields)
            also = ", ".join(f"{name} = {config[name]}" for name in others)
            raise UsageError(
                f"config.{blamed} = {config[blamed]}: needs at least {_gib(need.size)} GiB on each device for "
                f"{need.what} (with {also}); expected at most the {_gib(limit)} GiB {where}"
            )


def there_is(mesh: Mesh) -> tuple[int | None, str]:
    """(bytes, where): what a device may use, or of a processor all its memory; None where it is not known."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return host_memory(), "of memory and swap on this machine"
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit, f"that jax may use of {device.device_kind}"


def host_memory() -> int | None:
    """Bytes of memory and swap, or of memory what a container is allowed; None where the system does not say."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        total = sizes["MemTotal"] + sizes.get("SwapTotal", 0)
    except (OSError, ValueError, KeyError, IndexError):
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(pathlib.Path("/sys/fs/cgroup", name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or 'max'
            continue
    return total


def _scores(config: Config, mesh: Mesh, rows: int) -> int:
    """Bytes of one block's attention scores, where the implementation writes them down."""
    model = config.model
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if not (model.attention == "xla" or (model.attention == "auto" and on_cpu)):
        return 0
    return 4 * rows * -(-model.n_heads // axis_size(mesh, "tensor")) * model.length**2


def _by_excess(config: Config, fields: Sequence[str]) -> list[str]:
    """The field first that is furthest above its default."""

    def excess(name: str) -> float:
        value, usual = config[name], TABLE[name].default
        if name == "tokenizer.name":
            value, usual = vocabulary_size(value), vocabulary_size(usual)
        return math.log(value / usual) if name != "training.grad_accum" else -math.inf

    return sorted(fields, key=excess, reverse=True)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.0f}" if size >= 2**33 else f"{size / 2**30:.2g}"
