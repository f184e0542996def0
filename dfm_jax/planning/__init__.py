"""`--mode=compile`: what a config needs on machines that are not here, from the compiler that would run there.

targets            chips, and how many of them
programs           the functions that a run compiles; `driver` and `child` compile each in a process of its own
hlo/, report/      reading what was compiled; what is said about it
sweep              many variants of the training step
"""

import pathlib
from typing import Any

from dfm_jax.config import Config
from dfm_jax.data import vocabulary_size
from dfm_jax.experiment.problem import abstract, get_model_config
from dfm_jax.models.transformer import count_parameters
from dfm_jax.planning import driver, sweep, targets
from dfm_jax.planning.report import page as report
from dfm_jax.planning.report import verdict
from dfm_jax.runtime import files
from dfm_jax.runtime.terminal import note


def run(config: Config, target: str | None, workdir: pathlib.Path, *, axes: str | None = None) -> dict[str, Any]:
    """Compiles the config's programs for `target` and reports them, or sweeps over `axes` if given.

    Writes `compile.json` and `compile.md` (`sweep.json`, `sweep.md`) into `workdir`, prints a table, and returns what
    the JSON holds.

    Raises:
        UsageError: the target or the config is wrong, or the mesh does not match.
        WorldError: the CUDA compiler is missing, the folder is not writable, a compilation failed.
    """
    place = targets.parse(target)
    driver.check_fits_mesh(config, place)
    points = [] if axes is None else sweep.choices(config, place, axes)
    driver.check_installed()
    files.ensure_writable(workdir)
    assert target is not None
    if axes is not None:
        return run_sweep(config, target, place, workdir, points)
    jobs = [driver.Job(config, target, program) for program in driver.PROGRAMS]
    note(f"compiling {', '.join(driver.PROGRAMS)} for {place.describe()}, each in a process of its own")
    answers = driver.compile_all(jobs)
    for job, answer in zip(jobs, answers, strict=True):
        driver.raise_for(answer, job)
    result = result_of(config, place, dict(zip(driver.PROGRAMS, answers, strict=True)))
    files.write_json_atomically(workdir / "compile.json", result)
    files.write_atomically(workdir / "compile.md", report.markdown(result, workdir.name))
    print(report.terminal(result))
    note(f"{workdir / 'compile.md'}, {workdir / 'compile.json'}")
    return result


def result_of(config: Config, place: targets.Target, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report's content, from the children's answers by program."""
    return report.summary(config, place, answers, parameters(config), states(config))


def parameters(config: Config) -> int:
    """Trained numbers, without padding."""
    return count_parameters(get_model_config(config, states(config), "gpu"))


def states(config: Config) -> int:
    return abstract(config, vocabulary_size(config.tokenizer.name)).source.num_states


def run_sweep(
    config: Config, target: str, place: targets.Target, workdir: pathlib.Path, points: list[sweep.Choice]
) -> dict[str, Any]:
    """Larger batches are only tried where smaller ones fit, as memory grows with them."""
    note(f"compiling up to {len(points)} training steps for {place.describe()}")
    found: list[tuple[sweep.Choice, dict[str, Any]]] = []
    full: set[tuple[Any, str]] = set()
    for rows in sorted({point.rows for point in points}):
        wave = [p for p in points if p.rows == rows and (p.mesh, p.remat) not in full]
        jobs = [driver.Job(p.apply(config), target, "train") for p in wave]
        answers = driver.compile_all(jobs)
        found += zip(wave, answers, strict=True)
        for point, answer in zip(wave, answers, strict=True):
            word = answer.get("error") or verdict.judge(answer, config, place.chip, place.num_devices).word
            note(f"{point.describe()}: {word}")
            if word == verdict.NO:
                full.add((point.mesh, point.remat))
    ranked = sweep.rank(config, place, found, states(config))
    cells = sweep.render(ranked)
    result = {"target": place.describe(), "rows": ranked}
    files.write_json_atomically(workdir / "sweep.json", result)
    page = [f"# {workdir.name} on {place.describe()}: what fits", "", *report.table(cells), ""]
    page += [report.BOUND_NOT_PREDICTION, ""]
    files.write_atomically(workdir / "sweep.md", "\n".join(page))
    print("\n".join(report.aligned(cells)))
    return result
