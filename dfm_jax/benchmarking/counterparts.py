"""The training step and the sampler against the same in PyTorch, on the same device, where PyTorch is installed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from dfm_jax.benchmarking.results import Missing, Row, single
from dfm_jax.config import Config
from dfm_jax.runtime.errors import WorldError

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent.parent / "benchmarks"
# Of one step, at most: PyTorch stores all logits several times over, and all programs keep a copy of the parameters.
MOST_TOKENS = {"cpu": 2048, "other": 32768}
SAMPLER = {"cpu": {"batch": 4, "steps": 8}, "other": {"batch": 4, "steps": 32}}
TIMEOUT = 1800  # seconds; the benchmark's budget ends before


class NotHereError(Exception):
    """A benchmark that this machine cannot run, and why."""


def pytorch(config: Config, vocab_size: int) -> Iterator[Row | Missing]:
    """Milliseconds of one update here, in eager and, on a GPU, in compiled PyTorch, interleaved in one process."""
    device, kind = check("torch")
    model = config.model
    length = min(model.length, MOST_TOKENS[kind])
    sizes = {
        "hidden": model.hidden_size,
        "blocks": model.n_blocks,
        "heads": model.n_heads,
        "length": length,
        "batch": max(1, min(config.training.batch_size, MOST_TOKENS[kind] // length)),
        "vocabulary": vocab_size,
        "dropout": model.dropout,
        "device": device,
        "loss": "library" if importlib.util.find_spec("flow_matching") else "lean",
    }
    found = run("step_vs_pytorch.py", sizes, ["--compile", "--autocast"] if device == "cuda" else [])
    where = "bfloat16 on the GPU" if device == "cuda" else "float32 on the processor"
    note = f"{sizes['batch']} x {length} tokens, {where}, interleaved; PyTorch's loss: {sizes['loss']}"
    yield from rows("pytorch", found, "step", note)


def pytorch_sampler(config: Config, vocab_size: int) -> Iterator[Row | Missing]:
    """Milliseconds of one sampling step here, in the reference's solver and in its solver on a compiled model."""
    device, kind = check("torch", "flow_matching")
    model = config.model
    sizes = {
        "hidden": model.hidden_size,
        "blocks": model.n_blocks,
        "heads": model.n_heads,
        "length": model.length,
        "vocabulary": vocab_size,
        "device": device,
        **SAMPLER[kind],
    }
    found = run("sampler_vs_pytorch.py", sizes, ["--sources=uniform", *(["--compile"] if device == "cuda" else [])])
    note = f"{sizes['batch']} x {model.length} tokens, {sizes['steps']} steps, interleaved"
    yield from rows("pytorch_sampler", found, "sampling step", note)


def check(*needed: str) -> tuple[str, str]:
    """(PyTorch's name of the device that JAX uses, 'cpu' or 'other'); NotHereError where PyTorch cannot use it."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing or not SCRIPTS.is_dir():
        raise NotHereError(f"needs {', '.join(missing) or SCRIPTS}: pip install .[torch], in the repository")
    if jax.default_backend() == "cpu":
        return "cpu", "cpu"
    import torch  # pyright: ignore[reportMissingImports]

    if not torch.cuda.is_available():
        built = "with" if torch.version.cuda else "without"
        raise NotHereError(f"torch {torch.__version__}, built {built} CUDA, finds no GPU: nothing to compare with here")
    return "cuda", "other"


def run(script: str, options: dict[str, Any], switches: list[str]) -> dict[str, Any]:
    """What a script of benchmarks/ wrote as JSON; WorldError with its last line where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder, "answer.json")
        command = [sys.executable, str(SCRIPTS / script), *(f"--{name}={value}" for name, value in options.items())]
        paths = [str(SCRIPTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        child = subprocess.run(
            [*command, *switches, f"--json={answer}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
        print(child.stdout, child.stderr, sep="\n", flush=True)  # into the case's log
        if child.returncode:
            last = " ".join(child.stderr.strip().splitlines()[-1:])
            raise WorldError(f"{script} ended with status {child.returncode}: {last}")
        return json.loads(answer.read_text(encoding="utf-8"))


def rows(benchmark: str, found: dict[str, Any], what: str, note: str) -> Iterator[Row | Missing]:
    """The rows of a script's answer {seconds: {program: [seconds of each repeat]}, failed: {program: reason}}."""
    ours = sorted(found["seconds"]["ours"])
    for program, seconds in found["seconds"].items():
        ordered = sorted(seconds)
        quartile = len(ordered) // 4
        low, middle, high = (1e3 * ordered[i] for i in (quartile, len(ordered) // 2, len(ordered) - 1 - quartile))
        yield Row(benchmark, f"{program}, {what}", "ms", middle, low, high, len(ordered), found["calls"], note=note)
        if program != "ours":
            ratio = ours[len(ours) // 2] / ordered[len(ordered) // 2]
            yield single(benchmark, f"ours / {program}", ratio, "of its time", "of the medians")
    for program, reason in found["failed"].items():
        yield Missing(f"{benchmark} {program}", reason)


COUNTERPARTS = {"pytorch": pytorch, "pytorch_sampler": pytorch_sampler}
