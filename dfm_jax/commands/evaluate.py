"""`--mode=eval`: the numbers that papers print, each with its error and the convention it follows."""

import pathlib

import jax

from dfm_jax.command_line import Command
from dfm_jax.data import TokenStream
from dfm_jax.evaluation.evaluate import Evaluator
from dfm_jax.evaluation.report.markdown import compare, newest_report
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.experiment import streams as corpora
from dfm_jax.models import implementations
from dfm_jax.run import sizes
from dfm_jax.run.load import Run, load_with
from dfm_jax.runtime import processes
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.runtime.terminal import note


def run(command: Command) -> int:
    config, workdir = command.config, command.workdir
    if command.operands["compare"]:
        folders = [part.strip() for part in command.operands["compare"].split(",") if part.strip()]
        if not folders:
            raise UsageError(f"compare={command.operands['compare']}: accepted is RUN,RUN,...")
        if processes.is_first():
            print(compare([newest_report(folder) for folder in folders]))
        return 0
    assert workdir is not None
    if not (config.eval.elbo or config.eval.perplexity):
        raise UsageError("eval.elbo=False: accepted is at least one of --eval_elbo and --eval_perplexity")
    trained = load_with(config, workdir, step=command.operands["step"], mesh=get_mesh(command))
    implementations.check(trained.model.config, config.model.head, trained.mesh)
    if config.eval.perplexity or command.operands["frontier"]:
        needs = sizes.generation(config, trained.mesh, "eval.sample_batch_size", config.eval.num_samples)
        sizes.check(config, trained.mesh, needs)
    evaluator = get_evaluator(trained)
    if command.operands["frontier"]:
        evaluator.frontier(trained.model, trained.step)
        return 0
    evaluator.evaluate(trained.model, trained.step, elbo=config.eval.elbo, perplexity=config.eval.perplexity)
    if processes.is_first():
        print((workdir / "eval" / "report.md").read_text(encoding="utf-8"))
    return 0


def get_mesh(command: Command) -> jax.sharding.Mesh:
    """The config's mesh, or where this machine is another one than the run's, all its devices on `data`."""
    try:
        return make_mesh(MeshShape(**command.config.mesh))
    except UsageError:
        note(f"mesh: the run's does not fit {jax.device_count()} devices; all of them take rows of the batch")
        return make_mesh(MeshShape())


def get_evaluator(trained: Run) -> Evaluator:
    """What evaluates a run in its own folder."""
    config, mesh = trained.config, trained.mesh

    def open_corpus(name: str) -> TokenStream:
        stream = corpora.get_stream(config, "eval.corpora", trained.tokenizer, name)
        sizes.check(config, mesh, sizes.likelihood(config, mesh, stream.num_blocks(config.model.length)))
        return stream

    return Evaluator(
        settings=EvaluationSettings.from_config(trained.config, trained.tokenizer.vocab_size),
        problem=trained.problem,
        tokenizer=trained.tokenizer,
        mesh=trained.mesh,
        workdir=pathlib.Path(trained.folder),
        open_corpus=open_corpus,
        note=note if processes.is_first() else lambda line: None,
    )
