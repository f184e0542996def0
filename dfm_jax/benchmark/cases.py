"""What `--mode=benchmark` measures, the most telling first. A case is a benchmark and what it changes in the config.

`train` is the config's own training step; `train:attention=pallas` is that step with one field changed. On a GPU every
other value of the fields in VARIANTS is measured; on a processor, what is asked for by name.
"""

import dataclasses
from collections.abc import Callable, Iterator

from dfm_jax.benchmark import counterparts, data, operations, programs
from dfm_jax.benchmark.results import Missing, Row
from dfm_jax.config import Config, replace
from dfm_jax.runtime.errors import UsageError

Benchmark = Callable[[Config, int], Iterator[Row | Missing]]
BENCHMARKS: dict[str, Benchmark] = {
    **programs.PROGRAMS,
    **counterparts.COUNTERPARTS,
    **data.PIPELINE,
    **operations.OPERATIONS,
}
# Field of `config.model` -> its values, and what 'auto' is on a GPU.
VARIANTS = {
    "head": (("blocks", "pallas"), "blocks"),
    "attention": (("cudnn", "pallas", "xla"), "cudnn"),
    "remat": (("none", "dots", "blocks"), "none"),
}
# What says most comes first: a budget may end before the list does.
ORDER = (
    "train", "sampler", "pytorch", "train:head", "train:attention", "likelihood", "train:remat", "loader", "attention",
    "head", "pytorch_sampler", "prepare",
)  # fmt: skip
# Sequences per device of a training step, and of the likelihood, at most: 64 x 1024 tokens of the 170 M model take
# 28 GiB, and a config made for eight GPUs asks for all 512 of one that is alone.
MOST_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Case:
    """A benchmark with one field of `config.model` changed, or none."""

    benchmark: str
    field: str = ""
    value: str = ""

    @property
    def name(self) -> str:
        return f"{self.benchmark}:{self.field}={self.value}" if self.field else self.benchmark

    def apply(self, config: Config) -> Config:
        return replace(config, {f"model.{self.field}": self.value}) if self.field else config


def chosen(only: str | None, config: Config, platform: str) -> list[Case]:
    """The cases named in `only`, with commas, or all that `platform` has.

    A name is a benchmark (`train`), every other value of a field (`train:remat`) or one value (`train:remat=dots`).

    Raises:
        UsageError: a name is unknown.
    """
    if only is None:
        # On a processor only the config's own step: a kernel for GPUs is interpreted there.
        return [case for name in ORDER if platform != "cpu" or ":" not in name for case in named(name, config)]
    found = []
    for name in [name.strip() for name in only.split(",") if name.strip()] or [""]:
        cases = named(name, config)
        if not cases:
            known = [*ORDER, *(f"train:{field}={'|'.join(values)}" for field, (values, _) in VARIANTS.items())]
            raise UsageError(f"only = {only}: expected some of {', '.join(known)}, with commas")
        found += [case for case in cases if case not in found]
    return found


def named(name: str, config: Config) -> list[Case]:
    """The cases of one name; none where it is unknown."""
    if name in BENCHMARKS:
        return [Case(name)]
    benchmark, _, rest = name.partition(":")
    field, _, value = rest.partition("=")
    if benchmark != "train" or field not in VARIANTS:
        return []
    values, auto = VARIANTS[field]
    if field == "attention" and config.training.deterministic:
        auto = "xla"
    if "=" in rest:
        return [Case("train", field, value)] if value in values else []
    own = config.model[field] if config.model[field] != "auto" else auto
    return [Case("train", field, other) for other in values if other != own]


def fitted(config: Config, platform: str, devices: int) -> tuple[Config, str]:
    """The config with at most MOST_ROWS sequences a device, and what to say of it; on a processor as it is."""
    if platform == "cpu":
        return config, ""
    most, changes, said = MOST_ROWS * devices, {}, []
    for group in ("training", "eval"):
        wanted = config[group].batch_size
        rows = most * config.training.grad_accum if group == "training" else most
        if wanted > rows:
            changes[f"{group}.batch_size"] = rows
            said.append(f"{group}.batch_size = {wanted}: measured with {rows}, at most {MOST_ROWS} a device at a time")
    return replace(config, changes), "; ".join(said)
