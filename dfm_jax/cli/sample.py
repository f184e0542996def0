"""`--mode=sample`: text from a run, as text, JSON lines and a page that plays its making."""

import pathlib

from dfm_jax.cli.command_line import Command
from dfm_jax.run.sample import open_to_sample, read_prompt, sample, stream
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.terminal import note

PRINTED = 4  # texts that the terminal shows


def run(command: Command) -> int:
    assert command.workdir is not None
    operands = command.operands
    prompt = read_prompt(operands["prompt"], operands["prompt_file"])
    output = pathlib.Path(operands["output"]) if operands["output"] else None
    given = {"prompt": prompt, "special": bool(operands["prompt_special"])}
    length, block = operands["length"], operands["block"]
    if block is not None and length is None:
        raise UsageError(f"block = {block}: expected --length=N too")
    trained = open_to_sample(
        command.config, command.workdir, step=operands["step"], output=output, length=length, block=block, **given
    )
    if length is not None:
        drawn = stream(trained, length, block, **given, trim=bool(operands["trim"]), output=output, show=show)
        if drawn.stem is not None:
            note(f"{len(drawn.texts)} samples: {drawn.stem}.txt, {drawn.stem}.jsonl")
        return 0
    drawn = sample(trained, **given, trim=bool(operands["trim"]), output=output)
    if drawn.stem is not None:
        for text in drawn.texts[:PRINTED]:
            print(text, end="\n---\n")
        note(f"{len(drawn.texts)} samples: {drawn.stem}.txt, {drawn.stem}.jsonl, and to look at, {drawn.stem}.html")
    return 0


def show(index: int, piece: str) -> None:
    """Prints a piece of text `index` as it comes, and a line after the text."""
    if index < PRINTED:
        print(piece or "\n---\n", end="", flush=True)
