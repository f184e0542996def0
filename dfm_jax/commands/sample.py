"""`--mode=sample`: text from a run, as text, JSON lines and a page that plays its making."""

import pathlib

from dfm_jax.command_line import Command
from dfm_jax.commands.evaluate import get_mesh
from dfm_jax.evaluation.evaluate import FRAMES
from dfm_jax.evaluation.generation import Generator, to_text
from dfm_jax.evaluation.prompts import parse_prompt
from dfm_jax.evaluation.report.samples import sample_set, write_samples
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.models import implementations
from dfm_jax.run import sizes
from dfm_jax.run.load import load_with
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.terminal import note


def run(command: Command) -> int:
    config, workdir = command.config, command.workdir
    assert workdir is not None
    text = read_prompt(command.operands["prompt"], command.operands["prompt_file"])
    trained = load_with(config, workdir, step=command.operands["step"], mesh=get_mesh(command))
    implementations.check(trained.model.config, config.model.head, trained.mesh, losses=False)
    prompts = [] if text is None else [parse_prompt(text, trained.tokenizer, config.model.length)]
    sizes.check(
        config, trained.mesh, sizes.generation(config, trained.mesh, "sampling.batch_size", config.sampling.num)
    )
    settings = EvaluationSettings.from_config(config, trained.tokenizer.vocab_size)
    batch_size = config.sampling.batch_size * trained.mesh.size
    trim = bool(command.operands["trim"])
    first = processes.is_first()
    stem = sample_set(workdir / "samples", trained.step) if first else None
    tokens = write_samples(
        stem,
        Generator(
            trained.problem,
            settings.sampling,
            batch_size,
            trained.mesh,
            frames=FRAMES,
            deterministic=settings.deterministic,
        ),
        trained.model,
        config.sampling.num,
        trained.tokenizer,
        prompts=prompts,
        title=f"{workdir.name} · step {trained.step:,}",
        settings={"step": trained.step, "prompt": text or ""},
        trim=trim,
        progress=(lambda done: note(f"samples: {done} of {config.sampling.num}")) if first else None,
    )
    if first and stem is not None:
        for row in tokens[:4]:
            print(to_text(row, trained.tokenizer, trim=trim), end="\n---\n")
        note(f"{len(tokens)} samples: {stem}.txt, {stem}.jsonl, and to look at, {stem}.html")
    return 0


def read_prompt(prompt: str | None, file: str | None) -> str | None:
    """The prompt's text; a file's last line break is not part of it."""
    if prompt is not None and file is not None:
        raise UsageError(f"prompt_file={file}: accepted is one of --prompt and --prompt_file")
    if file is None:
        return prompt
    try:
        return pathlib.Path(file).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"prompt_file={file}: accepted is a readable text file ({error})") from error
