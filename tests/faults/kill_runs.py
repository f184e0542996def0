"""Kills one training run with -9 at random moments, each time giving the same command again, and compares it with a
run that was left alone: every parameter, every moment of the optimiser and every logged number, bit for bit.

    PYTHONPATH=. python tests/faults/kill_runs.py FOLDER [--kills=30] [--seed=0] [--tiny] [--config.FIELD=VALUE ...]

Moments are of four kinds: in the first preparation of the corpus (two of them); then in turn some time after the start
(in the imports, in the restoring, in the compilation), some lines of metrics later (in the steps), and while a
checkpoint is written.
"""

import argparse
import pathlib
import random
import signal
import sys
import time

import runs


def kill_at(run: runs.Run, kind: str, folder: pathlib.Path, chance: random.Random) -> bool:
    """Kills at a moment of this kind; False if the run has ended before it came."""
    path, incoming = folder / "disturbed" / "metrics.jsonl", folder / "disturbed" / "checkpoints" / ".incoming"

    def size() -> int:
        return path.stat().st_size if path.exists() else 0

    def wait(longest: float) -> bool:
        """A while, or until a step is logged: the run must not be done before it is killed."""
        before, end = size(), time.monotonic() + chance.uniform(0, longest)
        return run.wait_until(lambda: time.monotonic() > end or size() > before)

    if kind == "prepare":
        alive = run.wait_until((folder / "disturbed_data").exists) and wait(2.0)
    elif kind == "start":
        alive = wait(15.0)
    else:
        alive = run.wait_until(lambda: "run " in run.told())  # lines after the checkpoint are cut before that
        before, more = size(), chance.randint(1, 8) if kind == "steps" else 1
        alive = alive and run.wait_until(lambda: size() > before + 120 * more)
        if kind == "save":
            alive = alive and run.wait_until(incoming.exists) and wait(0.1)
    run.kill_all(signal.SIGKILL)
    return alive


def newest(workdir: pathlib.Path) -> int:
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()), default=0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quiet", type=pathlib.Path, help="folder of a finished run of this config that was left alone"
    )
    parser.add_argument("--tiny", action="store_true", help="a network of seconds instead of the quickstart's")
    arguments, rest = parser.parse_known_args()
    overrides = dict(runs.TINY) if arguments.tiny else {}
    overrides.setdefault("optim.n_iters", 20 + 6 * arguments.kills)
    overrides |= dict(word.removeprefix("--config.").split("=", 1) for word in rest)
    quiet, disturbed = arguments.quiet or arguments.folder / "quiet", arguments.folder / "disturbed"
    arguments.folder.mkdir(parents=True, exist_ok=True)

    if arguments.quiet is None:
        began = time.monotonic()
        runs.finish(runs.Run(runs.command(quiet, arguments.folder / "quiet_data", overrides)))
        print(f"left alone: {time.monotonic() - began:.0f} s", flush=True)

    chance = random.Random(arguments.seed)
    words = runs.command(disturbed, arguments.folder / "disturbed_data", overrides)
    killed = 0
    while killed < arguments.kills:
        kind = "prepare" if killed < 2 else ("start", "steps", "save")[killed % 3]
        run = runs.Run(words)
        if not kill_at(run, kind, arguments.folder, chance):
            runs.finish(run)
            print(f"the run was done after {killed} kills: give it more steps", flush=True)
            break
        killed += 1
        print(f"kill {killed:2d} ({kind}): newest checkpoint {newest(disturbed)}", flush=True)
    runs.finish(runs.Run(words))
    runs.assert_same_run(quiet, disturbed)
    step, arrays = runs.final_arrays(disturbed)
    print(f"{killed} kills; step {step}: {len(arrays)} arrays and {len(runs.logged(quiet))} lines bitwise equal")
    return 0 if killed == arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
