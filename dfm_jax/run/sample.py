"""Texts from a finished run, as files: text, JSON lines, and a page that plays their making."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dfm_jax import flow
from dfm_jax.config import Config
from dfm_jax.evaluation import long_texts
from dfm_jax.evaluation.evaluate import FRAMES
from dfm_jax.evaluation.generation import Generator, describe_evaluations, to_text
from dfm_jax.evaluation.prompts import parse_prompt
from dfm_jax.evaluation.report import run_page
from dfm_jax.evaluation.report.samples import append, beginning, finish, sample_set, write_samples
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.run import preflight
from dfm_jax.run.begin import as_begun
from dfm_jax.run.devices import using_mesh
from dfm_jax.run.load import Run, check_folder, load_with, used_step
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.terminal import Countdown, note


class SampleSet(NamedTuple):
    """tokens: (num, L) int32; texts: of the rows; stem: of the files, which end in .txt, .jsonl and .html (None on
    processes that write nothing)."""

    tokens: np.ndarray
    texts: list[str]
    stem: pathlib.Path | None


def open_to_sample(
    config: Config,
    folder: pathlib.Path,
    *,
    step: int | None,
    output: pathlib.Path | None,
    prompt: str | None,
    special: bool = False,
    length: int | None = None,
    block: int | None = None,
) -> Run:
    """The run, after the preflight of samples with `config` into `output` (None: its folder). Raises as both."""
    config = as_begun(config, folder)
    step = used_step(config, folder, step)
    check_folder(config, folder, step)
    mesh = using_mesh(config)
    check(config, folder, mesh, output, prompt, special, length, block)
    return load_with(config, folder, step=step, mesh=mesh)


def check(
    config: Config,
    folder: pathlib.Path,
    mesh,
    output: pathlib.Path | None,
    prompt: str | None,
    special: bool = False,
    length: int | None = None,
    block: int | None = None,
) -> None:
    """The preflight of samples of the run in `folder`; UsageError for a prompt that does not fit its length.

    length, block: of texts in blocks (`long_texts`); None is rows of the network's length.
    """
    place, field = (folder, "workdir") if output is None else (output, "output")
    tokenizer = preflight.sampling(config, place, mesh, field=field)
    if length is not None:
        masked = config.flow.source_distribution == "mask"
        long_texts.Blocks.of(length, block, config.model.length, masked)
    special = special or config.data.special == "parse"
    parsed = parse_prompt(prompt or "", tokenizer, length or config.model.length, special=special)
    if length is not None and prompt:
        long_texts.beginning_of(parsed, prompt)
    if flow.get_guidance(config.sampling.guidance) != 1 and not parsed.fixed.any():
        raise UsageError(f"config.sampling.guidance = {config.sampling.guidance}: expected a prompt or gaps, or 1")


def stream(
    trained: Run,
    length: int,
    block: int | None = None,
    *,
    prompt: str | None = None,
    special: bool = False,
    trim: bool = False,
    output: pathlib.Path | None = None,
    show: Callable[[int, str], None] = lambda index, piece: None,
) -> SampleSet:
    """`sampling.num` texts of `length` tokens in blocks of `block`, written as `sample` does, without a page.

    show: called with each piece of text `index` as soon as its block ends, and with "" when the text does. Every
    process generates; the first one shows and writes.
    """
    config, folder, first = trained.config, pathlib.Path(trained.folder), processes.is_first()
    stem = sample_set((output or folder) / "samples", trained.step) if first else None
    settings = EvaluationSettings.from_config(config, trained.tokenizer.vocab_size).sampling.describe()
    settings |= {"step": trained.step, "prompt": prompt or "", "length": length, "block": block}
    texts, rows, spent = [], [], []
    for index in range(config.sampling.num):
        pieces = []
        drawn = trained.stream(prompt, length=length, block=block, index=index, prompt_special=special, trim=trim)
        for piece in drawn:
            pieces.append(piece)
            if first:
                show(index, piece)
        texts.append("".join(pieces))
        rows.append(drawn.tokens)
        spent.append(list(drawn.spent.values()))
        if stem is not None:
            show(index, "")
            append(stem, index, texts[-1], drawn.tokens.tolist(), drawn.spent, settings)
    if stem is not None:
        finish(stem)
        note(f"samples: {describe_evaluations(flow.Evaluations(*np.array(spent).T))}")
    width = max(map(len, rows), default=0)
    tokens = np.stack([np.pad(row, (0, width - len(row)), constant_values=-1) for row in rows])
    return SampleSet(tokens, texts, stem)


def sample(
    trained: Run,
    *,
    prompt: str | None = None,
    special: bool = False,
    trim: bool = False,
    output: pathlib.Path | None = None,
) -> SampleSet:
    """`sampling.num` sequences as the run's config says, written into `output`/samples (None: its own folder).

    prompt: a beginning, or a text with <gap:N>; special: names of special tokens in it stand for them, as they do in a
    run with data.special=parse. trim: texts end at their first end of text, as answers of a run that trains on records
    do by themselves. Files of earlier samples stay: each set has a name of its own.
    """
    config, folder = trained.config, pathlib.Path(trained.folder)
    settings = EvaluationSettings.from_config(config, trained.tokenizer.vocab_size)
    first = processes.is_first()
    trim = trim or (settings.records and prompt is not None)
    special = special or config.data.special == "parse"
    prompts = [] if prompt is None else [parse_prompt(prompt, trained.tokenizer, config.model.length, special=special)]
    stem = sample_set((output or folder) / "samples", trained.step) if first else None
    generator = Generator(
        trained.problem,
        settings.sampling,
        config.sampling.batch_size * trained.mesh.size,
        trained.mesh,
        frames=FRAMES,
        deterministic=settings.deterministic,
    )
    num, unit = config.sampling.num, f"of {settings.sampling.steps:,} steps"
    with Countdown("samples", num, unit, note if first else lambda line: None) as progress:
        drawn = write_samples(
            stem,
            generator,
            trained.model,
            num,
            trained.tokenizer,
            prompts=prompts,
            title=f"{folder.name} · step {trained.step:,}",
            settings={"step": trained.step, "prompt": prompt or ""},
            trim=trim,
            progress=progress,
        )
    if first:
        note(f"samples: {describe_evaluations(drawn.evaluations)}")
    if first and output is None:
        run_page.write(folder)
    start = beginning(prompts, 0)
    texts = [to_text(row, trained.tokenizer, trim=trim, prompt_length=start) for row in drawn.tokens]
    return SampleSet(drawn.tokens, texts, stem)


def read_prompt(prompt: str | None, file: str | None) -> str | None:
    """The prompt's text, given as itself or as a file; a file's last line break is not part of it."""
    if prompt is not None and file is not None:
        raise UsageError(f"prompt_file = {file}: expected one of --prompt and --prompt_file")
    if file is None:
        return prompt
    try:
        return pathlib.Path(file).read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"prompt_file = {file}: expected a text file in UTF-8 that can be read ({error})") from error
