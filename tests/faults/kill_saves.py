"""Kills a process with -9 at random moments of its saves, again and again on one folder.

    PYTHONPATH=. python tests/faults/kill_saves.py FOLDER [--kills=30] [--seed=0]

Each child restores the newest checkpoint, checks every number in it, and saves one step after the other as fast as it
can. It says which steps are complete; none of them may ever be missing or wrong for the child after it. Children are
forked from one process that has imported everything and computed nothing, so that a kill costs little.
"""

import argparse
import os
import pathlib
import random
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.checkpoints.store import Checkpoints


def make_state(step: int) -> dict:
    numbers = np.arange(600_000, dtype=np.float32).reshape(600, 1000)
    return {"step": jnp.int32(step), "model": {f"w{i}": jnp.asarray(numbers + np.float32(step + i)) for i in range(3)}}


def work(folder: pathlib.Path, report) -> None:
    checkpoints = Checkpoints(folder, keep_last=2)
    step = 0
    if checkpoints.latest_step() is not None:
        step, state = checkpoints.restore(make_state(0))
        for here, expected in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(step)), strict=True):
            np.testing.assert_array_equal(np.asarray(here), np.asarray(expected))
    report(f"restored {step}")
    while True:
        step += 1
        checkpoints.save(step, make_state(step))
        report(f"complete {step - 1}")  # save waits for the one before


def kill_once(folder: pathlib.Path, delay: float) -> tuple[int, int]:
    """Runs a child, kills it `delay` seconds after its restore; the steps it restored and last called complete."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            work(folder, lambda line: os.write(writer, line.encode() + b"\n"))
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as lines:
        restored = lines.readline().split()
        if restored[:1] != ["restored"]:
            raise SystemExit("a child ended by itself before it had restored: see above")
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        complete = [int(line.split()[1]) for line in lines]
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit("a child ended by itself: see above")
    return int(restored[1]), max(complete, default=0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    complete, midway = 0, 0
    for _ in range(arguments.kills):
        restored, newest = kill_once(arguments.folder, chance.uniform(0.0, 0.3))
        if restored < complete:
            raise SystemExit(f"step {complete} was complete, and {restored} was restored")
        midway += (arguments.folder / ".incoming").exists()
        complete = max(newest, restored)
    print(f"{arguments.kills} kills, {midway} of them in a save, {complete} steps saved, none lost or wrong")


if __name__ == "__main__":
    sys.exit(main())
