"""Compiling programs, each in a process of its own, and what to say when one cannot be compiled."""

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh

from dfm_jax import config as configs
from dfm_jax.config import Config
from dfm_jax.data import vocabulary_size
from dfm_jax.planning.targets import Target
from dfm_jax.runtime import compiler
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.mesh import AXES, MeshShape, check_mesh
from dfm_jax.runtime.terminal import note

PROGRAMS = ("train", "loss", "evaluate", "sample")
TIMEOUT = 1800  # seconds for one program; a 7B step needs one minute
PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")


@dataclasses.dataclass(frozen=True)
class Job:
    """One program to compile."""

    config: Config
    target: str  # as on the command line
    program: str  # of PROGRAMS


def check_installed() -> None:
    """WorldError with what to install where XLA's CUDA compiler is missing. Loads nothing."""
    if not any(is_installed(name) for name in PLUGINS):
        version = jax.__version__
        raise WorldError(
            "mode=compile: XLA's CUDA compiler is not installed; accepted: pip install "
            f"jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} and "
            "pip install --no-deps nvidia-cudnn-cu12 nvidia-cuda-runtime-cu12 (no GPU is needed)"
        )


def is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def check_fits_mesh(config: Config, target: Target) -> MeshShape:
    """The config's mesh on the target's devices; UsageError where it does not divide them, the batch or the heads."""
    shape = MeshShape(**config.mesh).resolve(target.num_devices)
    check_mesh(
        AbstractMesh(dataclasses.astuple(shape), AXES),
        batch_size=config.training.batch_size,
        grad_accum=config.training.grad_accum,
        n_heads=config.model.n_heads,
    )
    return shape


def compile_all(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The answers of `dfm_jax.planning.child`, in the order of the jobs; {'error', 'text'} for one that failed."""
    # A compilation takes up to two gigabytes and about one core.
    workers = max(1, min(len(jobs), os.cpu_count() or 1))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(compile_one, jobs))
    for line in dict.fromkeys(line for answer in answers for line in answer.pop("notes", ())):
        note(line)
    return answers


def compile_one(job: Job) -> dict[str, Any]:
    """Runs one child to its end."""
    with tempfile.TemporaryDirectory() as folder:
        request, result = pathlib.Path(folder, "request.json"), pathlib.Path(folder, "answer.json")
        request.write_text(
            json.dumps(
                {
                    "config": configs.to_json(job.config),
                    "target": job.target,
                    "program": job.program,
                    "vocab_size": vocabulary_size(job.config.tokenizer.name),
                }
            ),
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "dfm_jax.planning.child", str(request), str(result)]
        try:
            child = subprocess.run(
                command, env=environment(), capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return {"error": "TimeoutExpired", "text": f"still compiling after {TIMEOUT} s"}
        if not result.is_file():
            lines = [line for line in child.stderr.splitlines() if line.strip()]
            return {"error": f"exit status {child.returncode}", "text": " ".join(lines[-1:])[-400:]}
        # Options that this XLA does not know: each child finds out for itself, the reader is told once.
        notes = [line for line in child.stderr.splitlines() if line.startswith(compiler.NOTE)]
        return json.loads(result.read_text(encoding="utf-8")) | {"notes": notes}


def environment() -> dict[str, str]:
    """A child's: this package importable, no device looked for, and none of this process's XLA flags."""
    root = str(pathlib.Path(__file__).resolve().parent.parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}


def raise_for(answer: dict[str, Any], job: Job) -> None:
    """UsageError or WorldError with one line, if the answer is a failure."""
    if "error" not in answer:
        return
    if "GpuTargetConfigProto" in answer["text"]:
        raise UsageError(
            f"target = {job.target}: expected a GpuTargetConfigProto in text form, such as those in "
            "dfm_jax/planning/chips; XLA cannot read this one"
        )
    if answer["error"] == "UsageError" and answer["text"].startswith("config."):
        raise UsageError(f"{answer['text']} (target {job.target})")
    text = f"target={job.target}: the {job.program} program could not be compiled ({answer['error']}: {answer['text']})"
    if answer["error"] in ("UsageError", "ValueError"):
        raise UsageError(f"{text}; expected a config and a target description that can")
    hint = "; is cuDNN installed? pip install --no-deps nvidia-cudnn-cu12 nvidia-cuda-runtime-cu12"
    raise WorldError(text + (hint if "cudnn" in answer["text"].lower() else ""))
