"""The training step against the same step written in PyTorch, where PyTorch is installed."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

from dfm_jax.benchmark.results import Row, single
from dfm_jax.config import Config
from dfm_jax.runtime.errors import WorldError

SCRIPT = pathlib.Path(__file__).resolve().parent.parent.parent / "benchmarks" / "step_vs_pytorch.py"
NEEDED = ("torch", "flow_matching")
# At most: PyTorch stores all logits, and both keep a copy of the parameters.
MOST_TOKENS = 2048
TIMEOUT = 1800  # seconds


class NotHereError(Exception):
    """A benchmark that this machine cannot run, and why."""


def pytorch(config: Config, vocab_size: int) -> Iterator[Row]:
    """Seconds of one update here and there, interleaved in one process of its own; the best and the median of five."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing or not SCRIPT.is_file():
        raise NotHereError(f"needs {', '.join(missing) or SCRIPT}: pip install .[torch], in the repository")
    model = config.model
    length = min(model.length, MOST_TOKENS)
    sizes = {
        "hidden": model.hidden_size,
        "blocks": model.n_blocks,
        "heads": model.n_heads,
        "length": length,
        "batch": max(1, min(config.training.batch_size, MOST_TOKENS // length)),
        "vocabulary": vocab_size,
        "dropout": model.dropout,
    }
    command = [sys.executable, str(SCRIPT), *(f"--{name}={value}" for name, value in sizes.items())]
    paths = [str(SCRIPT.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.run(
        command,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    if child.returncode:
        last = " ".join(child.stderr.strip().splitlines()[-1:])
        raise WorldError(f"only=pytorch: {SCRIPT.name} ended with status {child.returncode}: {last}")
    note = f"{sizes['batch']} x {length} tokens, float32 on the processor, interleaved"
    yield from parse(child.stdout, note)


def parse(text: str, note: str) -> Iterator[Row]:
    """The script's lines `median wall  ours 1.2 s  pytorch 1.3 s  ratio 0.92`."""
    pattern = r"^(best|median)\s+(wall|processor)\s+ours\s+([\d.]+) s\s+pytorch\s+([\d.]+) s"
    for kind, clock, ours, theirs in re.findall(pattern, text, re.MULTILINE):
        yield single("pytorch", f"our step, {kind}, {clock} time", float(ours), "s", note)
        yield single("pytorch", f"PyTorch's step, {kind}, {clock} time", float(theirs), "s", note)


COUNTERPARTS = {"pytorch": pytorch}
