"""Which meshes, batches and ways of recomputing fit, the fastest at the roofline first."""

import dataclasses
import itertools
from typing import Any

from dfm_jax.config import Config, replace
from dfm_jax.planning import driver
from dfm_jax.planning.report import page as report
from dfm_jax.planning.report import roofline, verdict
from dfm_jax.planning.targets import Target
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.mesh import MeshShape

REMAT = ("none", "dots", "blocks")
ROWS = (16, 32, 64, 128, 256)  # sequences per device in one pass


@dataclasses.dataclass(frozen=True)
class Choice:
    """One point of the sweep. `rows` sequences per (data, fsdp) device in one pass, the rest by accumulation."""

    mesh: MeshShape
    rows: int
    remat: str

    def describe(self) -> str:
        return f"mesh {self.mesh.describe()}, {self.rows} sequences a device, remat {self.remat}"

    def apply(self, config: Config) -> Config:
        """The config with this choice: the batch is kept where it divides, and rounded up to a multiple else."""
        changes: dict[str, Any] = {f"mesh.{name}": size for name, size in dataclasses.asdict(self.mesh).items()}
        at_once = self.rows * self.mesh.data * self.mesh.fsdp
        parts = max(1, -(-config.training.batch_size // at_once))
        changes |= {"training.batch_size": at_once * parts, "training.grad_accum": parts, "model.remat": self.remat}
        return replace(config, changes)


def choices(config: Config, target: Target, axes: str) -> list[Choice]:
    """Points along the axes named in `axes`, a comma-separated part of 'mesh,batch,remat' ('all' for all three)."""
    known = ("mesh", "batch", "remat")
    wanted = known if axes in ("", "all") else tuple(part.strip() for part in axes.split(","))
    if not set(wanted) <= set(known):
        raise UsageError(f"sweep = {axes}: expected all, or some of {', '.join(known)} with commas")
    own = driver.check_fits_mesh(config, target)
    own_rows = config.training.batch_size // (own.data * own.fsdp * config.training.grad_accum)
    meshes = meshes_of(config, target) if "mesh" in wanted else [own]
    rows = ROWS if "batch" in wanted else (own_rows,)
    remat = REMAT if "remat" in wanted else (config.model.remat,)
    return [Choice(*point) for point in itertools.product(meshes, rows, remat)]


def meshes_of(config: Config, target: Target) -> list[MeshShape]:
    """Everything split over nothing, over the node's GPUs, over all devices; and tensor parallelism over 2."""
    whole, node = target.num_devices, target.per_node
    shapes = [(1, 1), (node, 1), (whole, 1)]
    if node % 2 == 0 and config.model.n_heads % 2 == 0:
        shapes.append((node // 2, 2))
    return [MeshShape(whole // (f * t), f, t) for f, t in dict.fromkeys(shapes)]


def rank(config: Config, target: Target, found: list[tuple[Choice, dict[str, Any]]], num_states: int):
    """Rows of the frontier: what fits first, then by tokens per second at the bound."""
    rows = []
    for choice, answer in found:
        chosen = choice.apply(config)
        row: dict[str, Any] = {
            "mesh": choice.mesh.describe(),
            "rows": choice.rows,
            "remat": choice.remat,
            "batch_size": chosen.training.batch_size,
            "grad_accum": chosen.training.grad_accum,
        }
        if "error" in answer:
            rows.append(row | {"verdict": f"{answer['error']}: {answer['text']}"[:80], "needed": None, "bound": None})
            continue
        judged = verdict.judge(answer, chosen, target.chip, target.num_devices)
        bound = roofline.roofline(answer, target).bound
        row |= {"verdict": judged.word, "needed": judged.needed, "bound": bound}
        if bound:
            row["tokens_per_second"] = answer["tokens"] / bound
            row["mfu"] = roofline.utilisation(chosen, num_states, bound, target)
        rows.append(row)
    order = [verdict.FITS, verdict.TIGHT, verdict.NO]

    def key(row: dict[str, Any]):
        place = order.index(row["verdict"]) if row["verdict"] in order else len(order)
        return place, -row.get("tokens_per_second", 0.0), row["needed"] or 0

    return sorted(rows, key=key)


def render(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Cells of a table, the head first."""
    head = (
        "verdict",
        "mesh",
        "sequences a device",
        "remat",
        "batch",
        "parts",
        "needed",
        "tokens/s at most",
        "MFU at most",
    )
    cells = [
        (
            row["verdict"],
            row["mesh"],
            str(row["rows"]),
            row["remat"],
            f"{row['batch_size']:,}",
            str(row["grad_accum"]),
            report.gib(row["needed"]) if row["needed"] else "",
            f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "",
            f"{row['mfu']:.0%}" if row.get("mfu") else "",
        )
        for row in rows
    ]
    return [head, *cells]
