"""What is checked on a GPU, as functions of the size; `test_checks_here.py` runs them small on a processor.

Definitions are computed in float32 with products in float32 (a GPU would use TF32), on operands that were rounded to
the dtype under test before: what is left is the error of the implementation.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from faults import runs
from oracles import test_sampler_frequencies as frequencies

import programs
from kernels import attention, vocab_head


def relative(found, wanted) -> float:
    """|found - wanted| / |wanted|, of whole arrays."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def attention_errors(implementation: str, shape: tuple[int, int, int, int], dtype="bfloat16", scale=1.0):
    """Relative errors of the output and of the gradients in q, k and v against the definition in float32.

    shape: (batch, length, heads, head_dim). scale: of the queries given to the implementation alone, for a check of the
    check.
    """
    q, k, v, dout = (jax.random.normal(key, shape).astype(dtype) for key in jax.random.split(jax.random.key(0), 4))

    def run(q, k, v, dout, implementation):
        call = lambda q, k, v: attention.attention(q, k, v, implementation=implementation)  # noqa: E731
        out, pullback = jax.vjp(call, q, k, v)
        return out, *pullback(dout.astype(out.dtype))

    run = jax.jit(run, static_argnames="implementation")
    wanted = run(*(x.astype(jnp.float32) for x in (q, k, v, dout)), implementation="xla")
    found = run((q * jnp.asarray(scale, q.dtype)), k, v, dout, implementation=implementation)
    return {name: relative(a, b) for name, a, b in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True)}


def head_errors(implementation: str, rows: tuple[int, int], width: int, states: int, dtype="bfloat16", scale=1.0):
    """Errors of the fused head against the dense one in float32: nats of the values, relative ones of the gradients.

    rows: (batch, length). Values: the log-probabilities at two ids a row, and the sum of a loss. Gradients: of that
    sum, a generalized KL, in features, kernel and bias. scale: of the features given to the implementation alone.
    """
    stored = -(-states // 128) * 128
    keys = jax.random.split(jax.random.key(0), 5)
    features = jax.random.normal(keys[0], (*rows, width)).astype(dtype)
    kernel = (jax.random.normal(keys[1], (width, stored)) * width**-0.5).astype(dtype).astype(jnp.float32)
    bias = jax.random.normal(keys[2], (stored,)) * 0.1
    ids = jax.random.randint(keys[3], (*rows, 2), 0, states, jnp.int32)
    weight = jax.random.uniform(keys[4], rows)

    def loss(answer, data, shared):
        return data * (jnp.exp(answer.at_ids[..., 1]) - 1.0 - answer.at_ids[..., 0])

    def run(features, kernel, bias, implementation):
        query = vocab_head.Query(ids)

        def head(kernel, bias):
            return vocab_head.Head(kernel, bias, num_valid=states, implementation=implementation)

        at_ids = vocab_head.log_probs(head(kernel, bias), query, features).at_ids

        def total(features, kernel, bias):
            return vocab_head.summed_loss(head(kernel, bias), query, features, loss, weight)[0]

        return at_ids, *jax.value_and_grad(total, argnums=(0, 1, 2))(features, kernel, bias)

    run = jax.jit(run, static_argnames="implementation")
    with jax.default_matmul_precision("highest"):
        wanted = run(features.astype(jnp.float32), kernel, bias, implementation="dense")
    found = run(features * jnp.asarray(scale, features.dtype), kernel, bias, implementation=implementation)
    (at_ids, total, *gradients), (wanted_ids, wanted_total, *wanted_gradients) = _flat(found), _flat(wanted)
    errors = {"log_probs": float(np.abs(np.asarray(at_ids) - np.asarray(wanted_ids)).max())}
    errors["loss"] = relative(total, wanted_total)
    names = ("dfeatures", "dkernel", "dbias")
    return errors | {n: relative(a, b) for n, a, b in zip(names, gradients, wanted_gradients, strict=True)}


def _flat(answer):
    at_ids, total, gradients = answer
    return at_ids, total, *gradients


def draw_excess(implementation: str, rows: int, width: int, states: int) -> float:
    """The chi-square of `rows` draws from one row of bfloat16 features against softmax of its float32 logits."""
    stored = -(-states // 128) * 128
    keys = jax.random.split(jax.random.key(0), 3)
    row = jax.random.normal(keys[0], (width,)).astype(jnp.bfloat16)
    kernel = (jax.random.normal(keys[1], (width, stored)) * width**-0.5).astype(jnp.bfloat16).astype(jnp.float32)
    features = jnp.broadcast_to(row, (1, rows, width))
    head = vocab_head.Head(kernel, jnp.zeros(stored), num_valid=states, implementation=implementation)
    drawn = vocab_head.sample(head, vocab_head.Query(), features, keys[2])
    logits = np.asarray(row, np.float64) @ np.asarray(kernel, np.float64)[:, :states]
    law = np.exp(logits - logits.max())
    return frequencies.excess(np.bincount(np.asarray(drawn).ravel(), minlength=states), law / law.sum())


def gradient_process(sizes: dict, path: pathlib.Path, *, platform: str, dtype: str) -> subprocess.Popen:
    """Starts `gradient.py`: the loss and gradient of one update on `platform`, as `path` (an .npz file)."""
    script = pathlib.Path(__file__).with_name("gradient.py")
    env = programs.environment(JAX_PLATFORMS=platform)
    command = [sys.executable, str(script), json.dumps(sizes), dtype, str(path)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen, path: pathlib.Path) -> tuple[float, np.ndarray]:
    """(loss, gradient as one vector) that the process wrote."""
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    with np.load(path) as arrays:
        return float(arrays["loss"]), arrays["gradient"]


def compared(found: tuple[float, np.ndarray], wanted: tuple[float, np.ndarray]) -> dict[str, float]:
    """Relative errors of the loss and of the gradient's norm, and the cosine between the gradients."""
    (loss, gradient), (wanted_loss, wanted_gradient) = ((loss, g.astype(np.float64)) for loss, g in (found, wanted))
    norms = np.linalg.norm(gradient), np.linalg.norm(wanted_gradient)
    return {
        "loss": abs(loss / wanted_loss - 1),
        "norm": abs(norms[0] / norms[1] - 1),
        "cosine": float(gradient @ wanted_gradient / (norms[0] * norms[1])),
    }


class KilledRun:
    """A tiny run of some steps: once through, and once killed after a checkpoint and continued by the same command."""

    def __init__(self, folder: pathlib.Path, platform: str, steps: int, every: int):
        self.folder, self.steps, self.every = folder, steps, every
        self.overrides = runs.TINY | {
            "optim.n_iters": steps, "training.snapshot": every, "training.eval_freq": steps, "model.dropout": 0.1,
        }  # fmt: skip
        self.env = runs.environment() | {"JAX_PLATFORMS": platform}
        if platform != "cpu":
            del self.env["XLA_FLAGS"]  # those of a processor

    def __enter__(self) -> "KilledRun":
        self.started: list[subprocess.Popen] = []
        return self

    def __exit__(self, *exception) -> None:
        """Nothing that was started goes on, whatever happened."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def start(self, name: str) -> subprocess.Popen:
        words = runs.command(self.folder / name, self.folder / "cache", self.overrides)
        with (self.folder / f"{name}.txt").open("a") as told:
            self.started.append(
                subprocess.Popen(words, env=self.env, stdout=told, stderr=subprocess.STDOUT, start_new_session=True)
            )
        return self.started[-1]

    def finish(self, name: str, process: subprocess.Popen) -> None:
        assert process.wait(300) == 0, (self.folder / f"{name}.txt").read_text()[-3000:]

    def kill_in_the_middle(self, name: str) -> int:
        """Kills it, workers and all, once it has saved a checkpoint and gone on; the number of steps it had logged."""
        process, lines = self.start(name), self.folder / name / "metrics.jsonl"
        deadline = time.monotonic() + 300
        saved = self.folder / name / "checkpoints" / str(self.every)
        while not (saved.is_dir() and lines.is_file() and self.logged(lines) > self.every):
            assert process.poll() is None and time.monotonic() < deadline, (self.folder / f"{name}.txt").read_text()
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return self.logged(lines)

    @staticmethod
    def logged(lines: pathlib.Path) -> int:
        return sum(line.startswith("{") and line.endswith("}\n") for line in lines.open())

    def losses(self, name: str) -> list[float]:
        """By step; every step once."""
        found = [line for line in runs.logged(self.folder / name) if "train/loss" in line]
        assert [line["step"] for line in found] == list(range(1, self.steps + 1))
        return [line["train/loss"] for line in found]

    def arrays(self, name: str) -> np.ndarray:
        """Everything in the last checkpoint, as one vector."""
        step, arrays = runs.final_arrays(self.folder / name)
        assert step == self.steps
        return np.concatenate([np.ravel(np.asarray(x, np.float64)) for _, x in sorted(arrays.items())])


def sampler_excess(case_name: str) -> float:
    """The chi-square of a sampler's sequences against the enumerated law of its chain, on toy A in 4 steps."""
    case = next(case for case in frequencies.CHOSEN if case.name == case_name)
    stages = case.stages(4)
    source = frequencies.flow.get_source(case.source, 3)
    model = frequencies.tabulated("A", case.source, [kappa for kappa, _ in stages])
    path = frequencies.flow.MixtureDiscreteProbPath(frequencies.SCHEDULERS["linear"])
    solver = frequencies.flow.MixtureDiscreteSolver(model, path, source, step=case.step, group_size=1 << 15)
    counts = frequencies.sequence_counts(solver, source, 2, steps=4)
    return frequencies.excess(counts, frequencies.transitions.run("A", case.source, stages))


def plan_error(planned: int, measured: float) -> float:
    """How far the measured bytes are from the planned ones, as a share of the plan; above it is positive."""
    return measured / planned - 1
