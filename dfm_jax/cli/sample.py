"""`--mode=sample`: text from a run, as text, JSON lines and a page that plays its making."""

import pathlib

from dfm_jax.cli.command_line import Command
from dfm_jax.run.sample import open_to_sample, read_prompt, sample
from dfm_jax.runtime.terminal import note

PRINTED = 4  # texts that the terminal shows


def run(command: Command) -> int:
    assert command.workdir is not None
    operands = command.operands
    prompt = read_prompt(operands["prompt"], operands["prompt_file"])
    output = pathlib.Path(operands["output"]) if operands["output"] else None
    given = {"prompt": prompt, "special": bool(operands["prompt_special"])}
    trained = open_to_sample(command.config, command.workdir, step=operands["step"], output=output, **given)
    drawn = sample(trained, **given, trim=bool(operands["trim"]), output=output)
    if drawn.stem is not None:
        for text in drawn.texts[:PRINTED]:
            print(text, end="\n---\n")
        note(f"{len(drawn.texts)} samples: {drawn.stem}.txt, {drawn.stem}.jsonl, and to look at, {drawn.stem}.html")
    return 0
