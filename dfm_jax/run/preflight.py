"""What a command will need, checked before its first step, evaluation or sample.

After the processes have joined, and on each of them: what one lacks ends all, each with a line. What takes no time is
looked at first; then the corpora, which are prepared here where they are not.
"""

import dataclasses
import importlib.util
import pathlib

import jax

from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.data import Mixture, Tokenizer, TokenStream, get_tokenizer, vocabulary_size
from dfm_jax.evaluation.judge.perplexity import find_judge
from dfm_jax.experiment import streams
from dfm_jax.experiment.problem import get_model_config
from dfm_jax.experiment.streams import get_stream, get_training_stream
from dfm_jax.models import implementations
from dfm_jax.run import restore, sizes
from dfm_jax.runtime import files, processes
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.terminal import note


@dataclasses.dataclass(frozen=True)
class Needed:
    """What training reads: the tokenizer, and the training and validation text as tokens.

    blocks: what the evaluation at the end looks at of each text, by the report's name of it. evaluates: whether that
    evaluation is still to be made.
    """

    tokenizer: Tokenizer
    train: TokenStream | Mixture
    valid: TokenStream
    blocks: dict[str, int]
    evaluates: bool


def training(config: Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh) -> Needed:
    """All that training in `workdir`, its reports and the evaluation at its end will need.

    Raises:
        UsageError: the devices cannot run what the config names, or `checkpoint.restore_from` is another network.
        WorldError: a folder cannot be written to, or a corpus, the judge or the run of `checkpoint.restore_from` is
            not there, or a text is shorter than one block.
    """
    evaluates = not processes.from_first(report_file(workdir, last_step(config, workdir)).exists())
    elbo, perplexity = config.eval.elbo and evaluates, config.eval.perplexity and evaluates
    for name in ("checkpoints", "eval", "samples"):
        if processes.from_first(
            (workdir / name).exists()
        ):  # else it is made where it is used, in a folder that is right
            writable(workdir / name, "workdir")
    kernels(config, mesh)
    if config.logging.enable_wandb and importlib.util.find_spec("wandb") is None:
        raise UsageError(
            "config.logging.enable_wandb = true: expected the wandb package to be there (pip install wandb)"
        )
    restorable(config)
    tokenizer = tokenizer_of(config)
    if perplexity or 0 < config.training.perplexity_freq <= config.optim.n_iters:
        judge(config)
    train, valid = get_training_stream(config, tokenizer), get_stream(config, "data.valid", tokenizer)
    fits(config, mesh, sizes.likelihood(config, mesh, valid.num_blocks(config.model.length)))
    blocks = corpora(config, tokenizer, mesh, elbo=elbo, perplexity=False)
    return Needed(tokenizer, train, valid, blocks, evaluates)


def evaluation(
    config: Config, folder: pathlib.Path, mesh: jax.sharding.Mesh, *, field: str = "workdir", frontier: bool = False
) -> None:
    """All that evaluating a run into `folder` will need. field: the flag that names the folder.

    Raises: as `training`; UsageError where nothing is to be evaluated, or the frontier has no judge.
    """
    elbo, perplexity = config.eval.elbo and not frontier, config.eval.perplexity or frontier
    if not (elbo or perplexity):
        raise UsageError(
            "config.eval.elbo = false: expected at least one of config.eval.elbo and config.eval.perplexity"
        )
    if frontier and not config.eval.judge:
        raise UsageError(
            "config.eval.judge = (empty): expected the name or folder of a GPT-2, which the frontier needs"
        )
    for name in ("eval", "samples") if perplexity else ("eval",):
        writable(folder / name, field)
    kernels(config, mesh, losses=elbo)
    tokenizer = tokenizer_of(config)
    if perplexity:
        judge(config)
        fits(config, mesh, sizes.generation(config, mesh, "eval.sample_batch_size", config.eval.num_samples))
    corpora(config, tokenizer, mesh, elbo=elbo, perplexity=perplexity)


def sampling(
    config: Config, folder: pathlib.Path | None, mesh: jax.sharding.Mesh, *, field: str = "workdir"
) -> Tokenizer:
    """All that sampling from a run, into `folder`/samples where a folder is given, will need. Raises: as `training`."""
    if folder is not None:
        writable(folder / "samples", field)
    kernels(config, mesh, losses=False)
    fits(config, mesh, sizes.generation(config, mesh, "sampling.batch_size", config.sampling.num))
    return tokenizer_of(config)


def last_step(config: Config, workdir: pathlib.Path) -> int:
    """The step that the evaluation at the end of the run is of: the best one, if the run keeps that and is finished."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    best = checkpoints.best_step() if config.checkpoint.keep_best else None
    finished = (checkpoints.latest_step() or 0) >= config.optim.n_iters
    return best if best is not None and finished else config.optim.n_iters


def report_file(folder: pathlib.Path, step: int) -> pathlib.Path:
    """The report of the evaluation of step `step`, which is there once it is done."""
    return folder / "eval" / f"step_{step}.json"


def writable(folder: pathlib.Path, field: str) -> None:
    """Makes the folder, which process 0 writes into. WorldError naming `field` where it cannot."""
    processes.shared(lambda: files.ensure_writable(folder, field=field) if processes.is_first() else None)


def kernels(config: Config, mesh: jax.sharding.Mesh, *, losses: bool = True) -> None:
    """Whether the devices can run the attention and the head that are named; says what 'auto' has left out."""
    platform = mesh.devices.flat[0].platform
    model = get_model_config(config, vocabulary_size(config.tokenizer.name), platform)
    lines = processes.shared(lambda: implementations.check(model, config.model.head, mesh, losses=losses))
    for line in lines if processes.is_first() else ():
        note(line)


def tokenizer_of(config: Config) -> Tokenizer:
    """The config's tokenizer; WorldError where its files cannot be had."""
    name = config.tokenizer.name
    return processes.shared(lambda: get_tokenizer(name))


def judge(config: Config) -> None:
    """The judge's weights and tokenizer: a folder, or a name of the hub, downloaded where it is not cached."""
    if config.eval.judge:
        processes.shared(lambda: find_judge(config.eval.judge, vocabulary_size("gpt2")))
        processes.shared(lambda: get_tokenizer("gpt2"))


def fits(config: Config, mesh: jax.sharding.Mesh, needs: list[sizes.Need]) -> None:
    """UsageError where a device cannot hold what is needed, see `sizes.check`."""
    processes.shared(lambda: sizes.check(config, mesh, needs))


def corpora(
    config: Config, tokenizer: Tokenizer, mesh: jax.sharding.Mesh, *, elbo: bool, perplexity: bool
) -> dict[str, int]:
    """The texts of an evaluation, prepared, each of one block at least. Returns the blocks that are looked at of each,
    by the report's name of it."""
    found = {}
    for corpus in streams.corpora(config) if elbo else ():
        stream = get_stream(config, "eval.corpora", tokenizer, corpus)
        blocks = stream.num_blocks(config.model.length)
        fits(config, mesh, sizes.likelihood(config, mesh, blocks))
        found[streams.label(config, corpus)] = min(blocks, config.eval.max_blocks or blocks)
    if perplexity:
        get_stream(config, "data.valid", tokenizer)  # real text beside the samples
    return found


def restorable(config: Config) -> restore.Origin | None:
    """What `checkpoint.restore_from` names, or None where it names nothing. Raises as `restore.find`."""
    return processes.shared(lambda: restore.find(config))
