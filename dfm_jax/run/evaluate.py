"""Evaluating a finished run: the figures that papers print, into its folder or another one."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dfm_jax.config import Config
from dfm_jax.evaluation import baselines
from dfm_jax.evaluation.evaluate import Evaluator
from dfm_jax.evaluation.report import run_page
from dfm_jax.evaluation.report.markdown import Report, newest_report
from dfm_jax.evaluation.report.markdown import compare as side_by_side
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.experiment import streams
from dfm_jax.run import preflight
from dfm_jax.run.begin import as_begun
from dfm_jax.run.devices import using_mesh
from dfm_jax.run.load import Run, check_folder, load_with, used_step
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.terminal import note


def open_to_evaluate(
    config: Config, folder: pathlib.Path, *, step: int | None, output: pathlib.Path | None, frontier: bool = False
) -> Run:
    """The run, after the preflight of its evaluation with `config` into `output` (None: its folder). Raises as both."""
    config = as_begun(config, folder)
    step = used_step(config, folder, step)
    check_folder(config, folder, step)
    mesh = using_mesh(config)
    check(config, folder, mesh, output, frontier)
    return load_with(config, folder, step=step, mesh=mesh)


def check(config: Config, folder: pathlib.Path, mesh: Any, output: pathlib.Path | None, frontier: bool) -> None:
    """The preflight of an evaluation of the run in `folder`."""
    place, field = (folder, "workdir") if output is None else (output, "output")
    preflight.evaluation(config, place, mesh, field=field, frontier=frontier)


def evaluate(trained: Run, output: pathlib.Path | None = None) -> Report:
    """The evaluation that the run's config asks for: printed, then written into `output`/eval (None: its folder)."""
    asked = trained.config.eval
    evaluator = get_evaluator(trained, output)
    report = evaluator.evaluate(trained.model, trained.step, elbo=asked.elbo, perplexity=asked.perplexity)
    if output is None and processes.is_first():
        run_page.write(pathlib.Path(trained.folder))
    return report


def frontier(
    trained: Run, output: pathlib.Path | None = None, samplers: Sequence[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
    """Samples judged over temperatures, numbers of steps and `samplers` ((method, corrector) pairs; none: the config's
    own), and a plot in `output`/eval; see `Evaluator.frontier`."""
    return get_evaluator(trained, output).frontier(trained.model, trained.step, samplers=samplers)


def compare(folders: Sequence[str | os.PathLike]) -> str:
    """The newest reports of several runs side by side, as a Markdown table.

    Raises UsageError without a folder, WorldError where one has no report.
    """
    if not folders:
        raise UsageError("compare = (empty): expected RUN,RUN,...")
    return side_by_side([newest_report(folder) for folder in folders])


def get_evaluator(trained: Run, output: pathlib.Path | None = None) -> Evaluator:
    """What evaluates a run, into its own folder or `output`."""
    folder = pathlib.Path(trained.folder)
    return Evaluator(
        settings=EvaluationSettings.from_config(trained.config, trained.tokenizer.vocab_size),
        label=lambda corpus: streams.label(trained.config, corpus),
        baselines=lambda stream: baselines.kept(folder).get(stream.fingerprint),
        problem=trained.problem,
        tokenizer=trained.tokenizer,
        mesh=trained.mesh,
        workdir=output or folder,
        open_corpus=lambda name: streams.get_stream(trained.config, "eval.corpora", trained.tokenizer, name),
        note=note if processes.is_first() else lambda line: None,
        name=folder.name,
    )
