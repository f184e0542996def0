"""How long a step takes at least: arithmetic, memory and links at the chip's figures. A bound, not a prediction."""

import dataclasses
from typing import Any

from dfm_jax.config import Config
from dfm_jax.models import flops
from dfm_jax.planning.targets import Target

UTILISATIONS = (0.25, 0.40, 0.55)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one execution; None where the chip's description lacks a figure."""

    arithmetic: float | None  # all products at the peak
    memory: float  # all bytes at the memory's bandwidth
    kernels: float | None  # one kernel after another, each at the slower of the two
    links: float | None  # all collectives, each at its links' bandwidth
    exposed: float | None  # the part of links that the compiler's order of things leaves unhidden
    bound: float | None  # kernels, and the exposed links


@dataclasses.dataclass(frozen=True)
class Projection:
    """The configured run at an assumed model FLOP utilisation."""

    utilisation: float
    tokens_per_second: float
    step_seconds: float
    days: float


def roofline(answer: dict[str, Any], target: Target) -> Roofline:
    chip, counts = target.chip, answer["arithmetic"]
    total = counts["matrix_flops"] + counts["attention_flops"]
    each = [c["seconds"] for c in answer["collectives"]]
    links: float | None = None if None in each else sum(each)
    kernels: float | None = counts["kernel_seconds"]
    exposed = None if links is None or answer["hidden"] is None else max(links - answer["hidden"], 0.0)
    return Roofline(
        arithmetic=None if chip.peak is None else total / chip.peak,
        memory=counts["bytes_moved"] / chip.memory_bandwidth,
        kernels=kernels,
        links=links,
        exposed=exposed,
        bound=None if kernels is None or exposed is None else kernels + exposed,
    )


def utilisation(config: Config, num_states: int, seconds: float, target: Target) -> float | None:
    """Model FLOP utilisation of a training step that takes so many seconds."""
    if target.chip.peak is None:
        return None
    return flops.training_step(config, num_states) / (seconds * target.chip.peak * target.num_devices)


def projections(config: Config, num_states: int, target: Target) -> list[Projection]:
    """Tokens per second and days for `optim.n_iters` steps at each of UTILISATIONS."""
    if target.chip.peak is None:
        return []
    tokens = config.training.batch_size * config.model.length
    found = []
    for share in UTILISATIONS:
        seconds = flops.training_step(config, num_states) / (share * target.chip.peak * target.num_devices)
        found.append(Projection(share, tokens / seconds, seconds, seconds * config.optim.n_iters / 86400))
    return found
