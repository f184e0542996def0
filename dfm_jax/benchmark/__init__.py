"""`--mode=benchmark`: how fast this machine runs the config's programs, with spread, machine and versions."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import jax

from dfm_jax.benchmark import counterparts, data, operations, programs, results
from dfm_jax.config import Config
from dfm_jax.data import vocabulary_size
from dfm_jax.runtime import files
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.terminal import note

Benchmark = Callable[[Config, int], Iterator[results.Row]]
BENCHMARKS: dict[str, Benchmark] = {
    **programs.PROGRAMS,
    **data.PIPELINE,
    **operations.OPERATIONS,
    **counterparts.COUNTERPARTS,
}


def run(config: Config, workdir: pathlib.Path, *, only: str | None = None, trace: bool = False) -> int:
    """Runs the benchmarks named in `only` (with commas; all if None) on the devices here, and prints a table.

    Writes `benchmark.json` and `benchmark.md` into `workdir`; with `trace`, a `jax.profiler` trace of each benchmark
    under `trace/NAME`. A benchmark that cannot run here is left out and named with its reason.

    Raises:
        UsageError: a name is unknown, or the mesh does not match the devices.
        WorldError: the folder is not writable.
    """
    names = list(BENCHMARKS) if only is None else [name.strip() for name in only.split(",") if name.strip()]
    for name in names or [""]:
        if name not in BENCHMARKS:
            raise UsageError(f"only={only}: accepted are some of {', '.join(BENCHMARKS)}, with commas")
    files.ensure_writable(workdir)
    about = results.machine()
    rows: list[results.Row] = []
    left_out: dict[str, str] = {}
    vocab_size = vocabulary_size(config.tokenizer.name)
    for name in names:
        note(f"benchmark: {name}")
        folder = str(workdir / "trace" / name)
        try:
            with jax.profiler.trace(folder) if trace else contextlib.nullcontext():
                rows += BENCHMARKS[name](config, vocab_size)
        except counterparts.NotHereError as reason:
            left_out[name] = str(reason)
    text = results.markdown(rows, about, f"{workdir.name}, measured", left_out)
    files.write_json_atomically(
        workdir / "benchmark.json",
        {"machine": about, "rows": [dataclasses.asdict(row) for row in rows], "left_out": left_out},
    )
    files.write_atomically(workdir / "benchmark.md", text)
    print(text)
    return 0
