"""Does it fit? What a program needs on each device, beside what a process can have of the card."""

import dataclasses
import math
import os
from typing import Any

from dfm_jax.config import Config
from dfm_jax.planning.targets import Chip

GIB = 2**30
DEFAULT_POOL = 0.75  # of the card, what JAX takes for arrays unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
LARGEST_POOL = 0.95
# Outside JAX's pool: CUDA's context and loaded kernels, and NCCL's channels where there are several devices. Public
# experience, not measured on the cards named here.
CONTEXT = GIB
CHANNELS = int(1.5 * GIB)
# Of the pool, what an allocator that serves buffers of many sizes may be unable to use.
FRAGMENTATION = 0.03

FITS, TIGHT, NO = "fits", "tight", "does not fit"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Bytes per device."""

    word: str  # FITS | TIGHT | NO
    needed: int  # the compiler's peak and cuDNN's workspace
    usable: int  # of the pool that a run has with today's environment
    usable_at_most: int  # with XLA_PYTHON_CLIENT_MEM_FRACTION raised as far as it goes
    advice: tuple[str, ...]


def pool_fraction() -> float:
    """What a run started from this environment would use."""
    try:
        return float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
    except (KeyError, ValueError):
        return DEFAULT_POOL


def usable(chip: Chip, num_devices: int, fraction: float) -> int:
    """Bytes for arrays: the pool, or what is left beside context and channels, less fragmentation."""
    outside = CONTEXT + (CHANNELS if num_devices > 1 else 0)
    return int(min(fraction * chip.memory, chip.memory - outside) * (1 - FRAGMENTATION))


def judge(answer: dict[str, Any], config: Config, chip: Chip, num_devices: int) -> Verdict:
    """The verdict on one compiled program, with what to change where it is not 'fits'."""
    needed = answer["memory"]["peak"] + answer["arithmetic"]["attention_workspace"]
    now = usable(chip, num_devices, pool_fraction())
    most = usable(chip, num_devices, LARGEST_POOL)
    word = FITS if needed <= now else TIGHT if needed <= most else NO
    advice = [] if word == FITS else advise(answer, config, num_devices, most if word == NO else now, needed)
    if word == TIGHT:
        advice.insert(
            0, f"XLA_PYTHON_CLIENT_MEM_FRACTION={LARGEST_POOL} in the environment: JAX then takes more of the card"
        )
    return Verdict(word, needed, now, max(now, most), tuple(advice))


def advise(answer: dict[str, Any], config: Config, num_devices: int, room: int, needed: int) -> list[str]:
    """Changes that would make it fit, the cheapest in time first. Estimates: compile again to know."""
    if answer["program"] != "train":
        field = {"loss": "batch_size", "evaluate": "batch_size", "sample": "sample_batch_size"}[answer["program"]]
        return [f"--config.eval.{field}={max(1, config.eval[field] // _power(needed / room))}"]
    lines = []
    arguments = answer["memory"]["arguments"]
    mesh = answer["mesh"]
    if config.model.remat == "none":
        lines.append("--config.model.remat=dots --config.training.unroll=1 (keeps the products only), or remat=blocks")
    elif config.model.remat == "dots":
        lines.append("--config.model.remat=blocks: keeps one array a block and recomputes it")
    rows = config.training.batch_size // (mesh["data"] * mesh["fsdp"] * config.training.grad_accum)
    if room > arguments and rows > 1:
        parts = min(_power((needed - arguments) / (room - arguments)), rows)
        lines.append(f"--config.training.grad_accum={config.training.grad_accum * parts}: the same update, in parts")
    if arguments > room / 2 or not lines:
        split = mesh["fsdp"] * mesh["tensor"]
        if split < num_devices:
            lines.append(f"--config.mesh.fsdp={num_devices // mesh['tensor']}: splits parameters and moments further")
        else:
            lines.append("more devices: parameters and moments are split over all of these already")
    return lines


def _power(ratio: float) -> int:
    """The smallest power of 2 at or above."""
    return 2 ** max(1, math.ceil(math.log2(max(ratio, 1))))
