"""`--mode=benchmark`: how fast this machine runs the config's programs, with spread, machine and versions.

`cases` says what is measured and in which order, `driver` runs each case in a process of its own (`child`) within a
budget. `programs`, `operations`, `data` and `counterparts` measure, `timing` says what a time is, `results` is the
table.
"""

import pathlib

import jax

from dfm_jax.benchmarking import cases, driver, results
from dfm_jax.config import Config
from dfm_jax.runtime import files
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.terminal import note

SECONDS = 480  # budget where none is given


def run(
    config: Config,
    workdir: pathlib.Path,
    *,
    only: str | None = None,
    trace: bool = False,
    seconds: float | None = None,
) -> int:
    """Measures the cases named in `only` (with commas; all if None) on the devices here, and prints a table.

    Writes into `workdir`: `benchmark.jsonl`, a line for each figure as soon as it is measured; `benchmark.json` and
    `benchmark.md`, anew after each case; `log/CASE.txt`, what its process printed; with `trace`, a `jax.profiler` trace
    of each case under `trace/CASE`. A case that fails is named with its reason, and the others go on. After `seconds`
    (SECONDS if None, 0 for no end) nothing begins and what runs is ended; what was not measured is named.

    Raises:
        UsageError: a name is unknown, the mesh does not match the devices, or several processes are joined.
        WorldError: the folder is not writable, or there is no device.
    """
    if jax.distributed.is_initialized():
        raise UsageError("mode = benchmark: expected one process; it measures the devices of this machine")
    cases.chosen(only, config, "gpu")  # an unknown name is said at once
    files.ensure_writable(workdir)
    budget = driver.Budget((SECONDS if seconds is None else seconds) or None)
    answer, logs = workdir / "benchmark.jsonl", workdir / "log"
    answer.write_text("", encoding="utf-8")
    about = driver.describe_machine(config, answer, logs / "machine.txt", budget)
    waiting = cases.chosen(only, config, about["devices"][1])
    rows: list[dict] = []
    left_out: dict[str, str] = {}
    took: dict[str, float] = {}

    def write() -> str:
        content = {"machine": about, "rows": rows, "left_out": left_out, "seconds": took, "budget": budget.seconds}
        files.write_json_atomically(workdir / "benchmark.json", content)
        text = results.markdown([results.Row(**row) for row in rows], about, f"{workdir.name}, measured", left_out)
        files.write_atomically(workdir / "benchmark.md", text)
        return text

    text = write()
    for case in waiting:
        if budget.spent():
            left_out[case.name] = f"not begun: {budget.describe()}"
            continue
        note(f"benchmark: {case.name}")
        name = case.name.replace(":", "-").replace("=", "-")
        folder = str(workdir / "trace" / name) if trace else None
        outcome = driver.run_case(
            case, config, answer=answer, log=logs / f"{name}.txt", trace=folder, budget=budget
        )  # fmt: skip
        rows += outcome.of("row")
        left_out |= {missing["name"]: missing["reason"] for missing in outcome.of("missing")}
        if outcome.reason:
            left_out[case.name] = outcome.reason
        took[case.name] = round(outcome.seconds, 1)
        text = write()
    text = write()
    print(text)
    return 0
