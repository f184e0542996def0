"""A quarter of an hour with a GPU: the figures and the tests that only a GPU can give, in one folder, as they come.

    JAX_PLATFORMS=cuda PYTHONPATH=. python benchmarks/on_a_gpu.py [--folder on_a_gpu] [--minutes 9]
                                    [--config configs/uniform_gkl.py] [--dry]

Parts, the most telling first: the training step and its kernels (`--mode=benchmark`), the kernels and one update
against float32 (`pytest -m gpu`), the other figures, the other tests. Each part has its share of the minutes, and what
an earlier part left over. A part at its end is stopped, and what it had found by then is kept.

The folder holds about.json (date, card, versions, commit), nvidia-smi.txt, a folder for each part of the benchmark,
pytest's log for each part of the tests, and summary.md and summary.json, which are written anew after each part.
With `--dry` the same parts run at a toy size on a processor, to see that the script works. Exit status: 0 if every
part ended by itself and well, else 1.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

from dfm_jax.benchmarking.results import versions
from dfm_jax.runtime.files import write_atomically, write_json_atomically

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIRST_TESTS = "attention or fused_head or update"
TOY = [f"--config.{field}" for field in ("model.hidden_size=16", "model.n_heads=2", "model.n_blocks=1",
       "model.length=16", "training.batch_size=4", "data.num_workers=1")]  # fmt: skip
TO_END = 10  # seconds that a part has between being asked to end and being ended


@dataclasses.dataclass(frozen=True)
class Part:
    """A command with its share of the whole time. benchmark: the names that it measures; else `tests` is for pytest."""

    name: str
    share: float
    benchmark: str = ""
    tests: str = ""


PARTS = (
    Part("1-step", 0.24, benchmark="train,train:head,train:attention"),
    Part("2-kernel-tests", 0.24, tests=f"({FIRST_TESTS}) and not draws"),
    Part("3-figures", 0.30, benchmark="sampler,pytorch,likelihood,train:remat,attention,head,loader,pytorch_sampler"),
    Part("4-other-tests", 0.22, tests=f"not (({FIRST_TESTS}) and not draws)"),
)
DRY = (
    Part("1-step", 0.4, benchmark="train"),
    Part("2-kernel-tests", 0.3, tests="attention and not scale"),
    Part("3-figures", 0.2, benchmark="loader"),
    Part("4-other-tests", 0.1, tests="memory_beside"),
)


def command(part: Part, args: argparse.Namespace, seconds: float) -> list[str]:
    """The words of a part that may take so many seconds."""
    if part.benchmark:
        # It ends by itself, a little before it is ended.
        budget = f"--seconds={max(1, int(seconds - TO_END))}"
        flags = [f"--config={args.config}", "--mode=benchmark", f"--workdir={args.folder / part.name}", budget]
        words = [str(ROOT / "main.py"), *flags, f"--only={part.benchmark}", *(TOY if args.dry else [])]
        return [sys.executable, *words]
    tier = [str(ROOT / "tests" / "gpu" / "test_checks_here.py")] if args.dry else ["-m", "gpu", str(ROOT / "tests/gpu")]
    return [sys.executable, "-m", "pytest", "-v", "-rA", "-p", "no:cacheprovider", "-k", part.tests, *tier]


def run(part: Part, args: argparse.Namespace, seconds: float) -> dict[str, object]:
    """Runs a part to its end or to that of its time; how it ended."""
    started = time.monotonic()
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a script starts with `&`; parts would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with (args.folder / f"{part.name}.txt").open("w") as told:
        process = subprocess.Popen(
            command(part, args, seconds),
            cwd=ROOT,
            env=env,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
    took = round(time.monotonic() - started, 1)
    how = f"stopped after {seconds:.0f} s" if status is None else f"exit status {status}"
    return {"part": part.name, "seconds": took, "ended": how, "well": status == 0}


def end(process: "subprocess.Popen[bytes]") -> None:
    """^C to a part that still runs, which then says what it found; after TO_END seconds the end of all it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TO_END)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def output(*words: str) -> str:
    """What a command prints, or why it cannot."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{words[0]}: {error}"
    return done.stdout.strip() or done.stderr.strip()


def about(args: argparse.Namespace) -> dict[str, object]:
    (args.folder / "nvidia-smi.txt").write_text(output("nvidia-smi") + "\n\n" + output("nvidia-smi", "-q") + "\n")
    card = output("nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "card": card,
        "commit": output("git", "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "versions": versions(),
        "config": args.config,
        "minutes": args.minutes,
        "dry": args.dry,
    }


def summary(args: argparse.Namespace, facts: dict[str, object], ended: list[dict[str, object]]) -> None:
    """Writes what is known so far: the parts, the figures, the lines of pytest."""
    lines = [f"# {facts['card']}, {facts['date']}", "", f"Commit {facts['commit']}. {facts['versions']}", ""]
    rows, left_out, tests = [], {}, []
    lines += [f"- {part['part']}: {part['ended']}, {part['seconds']} s" for part in ended]
    for part in ended:
        folder, log = args.folder / str(part["part"]), args.folder / f"{part['part']}.txt"
        if (folder / "benchmark.json").is_file():
            found = json.loads((folder / "benchmark.json").read_text())
            rows += found["rows"]
            left_out |= found["left_out"]
            lines += ["", (folder / "benchmark.md").read_text().rstrip()]
        else:
            words = ("PASSED ", "FAILED ", "SKIPPED ", "ERROR ")
            said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(words)]
            tests += said
            lines += ["", f"# {part['part']}", "", *(f"- {line}" for line in said or ["no test came to its end"])]
    content = {"about": facts, "parts": ended, "rows": rows, "left_out": left_out, "tests": tests}
    write_json_atomically(args.folder / "summary.json", content)
    write_atomically(args.folder / "summary.md", "\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("on_a_gpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--config", default=None)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.config = args.config or str(ROOT / "configs" / ("quickstart.py" if args.dry else "uniform_gkl.py"))
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if args.dry else "cuda")
    deadline = time.monotonic() + 60 * args.minutes
    args.folder.mkdir(parents=True, exist_ok=True)
    facts = about(args)
    write_json_atomically(args.folder / "about.json", facts)
    parts, ended = DRY if args.dry else PARTS, []
    for i, part in enumerate(parts):
        later = sum(60 * args.minutes * other.share for other in parts[i + 1 :])
        seconds = deadline - time.monotonic() - later - TO_END
        print(f"{part.name}: at most {seconds:.0f} s", flush=True)
        ended.append(run(part, args, seconds))
        print(f"{part.name}: {ended[-1]['ended']}, {ended[-1]['seconds']} s", flush=True)
        summary(args, facts, ended)
    print(args.folder / "summary.md")
    return 0 if all(part["well"] for part in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
