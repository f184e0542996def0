"""A sample set's files: text to read, JSON lines to compute with, a page to look at. Nothing is ever overwritten.

A file under its own name is whole. What a call that was killed had made is in files that end in `.part`.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dfm_jax.data import Tokenizer
from dfm_jax.evaluation.generation import Generator, Samples, joined, to_text
from dfm_jax.evaluation.prompts import Prompt
from dfm_jax.evaluation.report.page import render_page
from dfm_jax.models.transformer import Transformer
from dfm_jax.runtime import files

SUFFIXES = (".txt", ".jsonl", ".html")
PART = ".part"
PAGE_SAMPLES = 64  # sequences on the page: what a browser shows without effort


def sample_set(folder: str | os.PathLike, step: int) -> pathlib.Path:
    """The first of `folder`/step_N, step_N-2, step_N-3, ... that has no .txt, .jsonl or .html file yet."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        stem = folder / (f"step_{step}" if number == 1 else f"step_{step}-{number}")
        if not any(stem.with_suffix(suffix + part).exists() for suffix in SUFFIXES for part in ("", PART)):
            return stem
        number += 1


def write_samples(
    stem: pathlib.Path | None,
    generator: Generator,
    model: Transformer,
    num: int,
    tokenizer: Tokenizer,
    *,
    prompts: Sequence[Prompt] = (),
    title: str = "samples",
    settings: Mapping[str, Any] | None = None,
    trim: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Samples:
    """Generates `num` sequences, and writes stem.txt, stem.jsonl and stem.html. Returns them without their frames.

    Each batch is appended as it comes, to stem.txt.part and stem.jsonl.part, which get their names at the end. A line
    of stem.jsonl holds `index`, `text`, `tokens`, `evaluations` (a `flow.Evaluations`) and `settings`. stem.html shows
    the first PAGE_SAMPLES sequences through time, if the generator keeps frames. stem: None writes nothing, for all
    processes but one; every process generates.
    trim: texts end at their first end of text, after a prompt that is a beginning.
    """
    described = {**generator.settings.describe(), **(settings or {})}
    batches: list[Samples] = []
    frames: list[np.ndarray] = []
    for batch in generator(model, num, prompts=prompts):
        first = sum(len(earlier.tokens) for earlier in batches)
        batches.append(batch._replace(frames=None))
        if batch.frames is not None and first < PAGE_SAMPLES:
            frames.append(batch.frames[:, : PAGE_SAMPLES - first])
        if stem is not None:
            for i, row in enumerate(batch.tokens):
                text = to_text(row, tokenizer, trim=trim, prompt_length=beginning(prompts, first + i))
                spent = {name: int(count[i]) for name, count in batch.evaluations._asdict().items()}
                append(stem, first + i, text, row.tolist(), spent, described)
        if progress is not None:
            progress(first + len(batch.tokens))
    if stem is not None and frames:
        shown = np.concatenate(frames, axis=1)
        page = render_page(
            shown,
            generator.frame_times.tolist(),
            generator.frame_steps.tolist(),
            show=lambda token: tokenizer.decode([token]),
            title=title,
            settings=described,
            mask_id=generator.problem.source.mask_id,
            eos_id=tokenizer.eos_id,
            fixed=np.stack([prompts[i % len(prompts)].fixed for i in range(shown.shape[1])]) if prompts else None,
        )
        files.write_atomically(stem.with_suffix(".html"), page)
    if stem is not None:
        finish(stem)
    return joined(batches)


def append(
    stem: pathlib.Path, index: int, text: str, tokens: list[int], spent: Mapping[str, int], settings: Mapping[str, Any]
) -> None:
    """Adds one text to stem.txt.part and stem.jsonl.part. spent: what the model was asked, see `flow.Evaluations`."""
    with stem.with_suffix(".txt" + PART).open("a", encoding="utf-8") as file:
        file.write(_as_text(index, text))
    with stem.with_suffix(".jsonl" + PART).open("a", encoding="utf-8") as file:
        line = {"index": index, "text": text, "tokens": tokens, "evaluations": spent, "settings": settings}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def finish(stem: pathlib.Path) -> None:
    """Gives the files of a set their names."""
    for suffix in (".txt", ".jsonl"):
        os.replace(stem.with_suffix(suffix + PART), stem.with_suffix(suffix))


def beginning(prompts: Sequence[Prompt], index: int) -> int:
    """How many tokens sequence `index` begins with that are given."""
    return int(np.argmin([*prompts[index % len(prompts)].fixed, False])) if prompts else 0


def _as_text(index: int, text: str) -> str:
    return f"{'' if index == 0 else chr(10)}=== {index} ===\n{text}\n"
