"""The Python face: what `main.py` does, as functions. Each is a thin call of `dfm_jax.run`, imported when it is called.

A config is named in four ways: the name of one that comes with the package ("quickstart"), a Python file with
get_config(), a ConfigDict, or a frozen `Config` such as `run.config`. `overrides` are other values of its fields:
{"optim.lr": 1e-3}; `python -m dfm_jax --help=config` lists them all with their units.

An argument that cannot be used is a ValueError that names it. What the world lacks (a file, a corpus, room on the disk)
is a `dfm_jax.runtime.errors.WorldError` with one line. After ^C the process is as before: locks are released, signal
handlers are restored, and what was saved stays.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    import pathlib
    from collections.abc import Mapping, Sequence
    from typing import Any

    import jax

    from dfm_jax.evaluation.report.markdown import Report
    from dfm_jax.run.load import Run

__all__ = [
    "benchmark",
    "compare",
    "evaluate",
    "export",
    "frontier",
    "import_weights",
    "load",
    "plan",
    "prepare",
    "sample",
    "train",
]


def train(
    config: "Any", workdir: "str | os.PathLike | None" = None, *, overrides: "Mapping[str, Any] | None" = None
) -> "Run":
    """Trains a run in `workdir`, or continues the one that is there, evaluates it, and returns it.

    Corpora are tokenised on first use. Checkpoints, metrics, samples and the evaluation go into the folder; the same
    call continues after an interruption, from the newest intact checkpoint.

    Args:
        config: see `dfm_jax.api`; a run's folder is that run, to be continued.
        workdir: the run's folder; None is runs/NAME for a config with a name.
        overrides: other values of fields, {"group.field": value}.

    Returns: the run at its newest checkpoint, whose `step` is below `config.optim.n_iters` if SIGTERM stopped it.

    Raises:
        ValueError: a field has a value that it does not accept, or that does not go with the others or the devices.
        WorldError: the folder holds another run, a corpus or the judge is not there, or updates are not finite.
        KeyboardInterrupt: after ^C, once the step is finished and saved; at once at the second ^C.

    Example:
        >>> run = dfm_jax.train("quickstart", "runs/first", overrides={"optim.n_iters": 200})
        >>> run.sample(1)
    """
    from dfm_jax.run import settings
    from dfm_jax.run.arguments import as_value_errors
    from dfm_jax.run.begin import as_begun
    from dfm_jax.run.load import load_with
    from dfm_jax.run.train import train as run
    from dfm_jax.runtime import cache
    from dfm_jax.runtime.signals import GracefulStop

    folder = settings.run_folder(config, workdir)
    made = settings.resolve(config, overrides, "train")
    cache.use(made.training.compilation_cache, only_if_none=True)
    stop = GracefulStop(announce="finishing the step and saving; once more interrupts at once", ends_process=False)
    with as_value_errors():
        run(made, folder, stop)
        if stop.signal_name == "SIGINT":
            raise KeyboardInterrupt(f"stopped and saved; the same call continues the run in {folder}")
        return load_with(as_begun(made, folder), folder)


def prepare(
    config: "Any",
    *,
    overrides: "Mapping[str, Any] | None" = None,
    shard: "tuple[int, int] | None" = None,
    verify: bool = False,
    show: int = 0,
) -> "dict[str, pathlib.Path]":
    """Tokenises the config's corpora into shards, which training and evaluation then find.

    Args:
        config, overrides: see `dfm_jax.api`.
        shard: (i, n), part i of n of the work, 0 <= i < n, for several machines; a last call without it joins them.
        verify: read every shard and compare its checksum with the manifest.
        show: so many blocks of data.train are printed as the network will see them.

    Returns: the folder of "data.train", of "data.valid" and, by its name, of each evaluation corpus.

    Raises:
        ValueError: a field, `shard` or `show` has a value that means nothing.
        WorldError: there is no such text, or a shard is damaged.

    Example:
        >>> dfm_jax.prepare("quickstart", overrides={"data.train": "my_text/*.txt", "data.valid": "held_out.txt"})
    """
    from dfm_jax.run import arguments, settings
    from dfm_jax.run.prepare import prepare as run

    if shard is not None:
        if not isinstance(shard, (tuple, list)) or len(shard) != 2:
            arguments.refuse("shard", shard, "(i, n) with 0 <= i < n")
        count = arguments.integer("shard[1]", shard[1], 1)
        shard = arguments.integer("shard[0]", shard[0], 0, count - 1), count
    made = settings.resolve(config, overrides, "prepare")
    with arguments.as_value_errors():
        return run(made, shard=shard, check=verify, show=arguments.integer("show", show, 0))


def load(folder: "str | os.PathLike", *, step: "int | None" = None, mesh: "jax.sharding.Mesh | None" = None) -> "Run":
    """A trained run: `.sample`, `.sample_tokens`, `.likelihood`, `.logits`, `.config`, `.step`, `.tokenizer`, `.model`.

    Args:
        folder: of the run; or a folder that `export` wrote with format="hub", or its name on the hub, "hf:OWNER/NAME".
        step: of the checkpoint; None is the newest that is intact.
        mesh: where its parameters go, by the rules of training; None is a whole copy on every device.

    Raises:
        ValueError: `folder` or `step` is of another type.
        WorldError: there is no run, no intact checkpoint, or none of this step.

    Example:
        >>> run = dfm_jax.load("runs/quickstart")
        >>> run.sample(2, prompt="The ", steps=64, temperature=0.9)
        >>> run.likelihood(run.tokenizer.encode_batch(["a text"]))["generalized_kl"].nats_per_token
    """
    from dfm_jax.run import arguments, settings
    from dfm_jax.run.publishing.loading import load as run

    step = None if step is None else arguments.integer("step", step, 0)
    with arguments.as_value_errors():
        return run(settings.folder("folder", folder), step=step, mesh=mesh)


def evaluate(
    run: "Run | str | os.PathLike",
    *,
    step: "int | None" = None,
    overrides: "Mapping[str, Any] | None" = None,
    output: "str | os.PathLike | None" = None,
) -> "Report":
    """The figures that papers print, each with its standard error: printed, written, and returned.

    What is evaluated is `config.eval`: bounds on the likelihood of each corpus of `eval.corpora` with `eval.elbo` (nats
    per token), and generated text with `eval.perplexity` (perplexity under `eval.judge`, entropy, repetition).

    Args:
        run: a loaded run, its folder, or a folder or name on the hub as `load` takes them.
        step: of the checkpoint, for a folder; None is the newest.
        overrides: other values of fields, such as {"eval.time_points": 64}.
        output: a folder for eval/ and samples/; None is the run's.

    Returns: `.likelihood[corpus]["bounds"][name]["nats_per_token"]`, `.generation`, and `.missing`, what was left out.

    Raises:
        ValueError: an argument or field cannot be used.
        WorldError: a corpus is not there or shorter than one block, or the judge or the folder cannot be used: said
            before anything is computed.

    Example:
        >>> report = dfm_jax.evaluate("runs/quickstart", overrides={"eval.perplexity": False})
        >>> {name: entry["bounds"] for name, entry in report.likelihood.items()}
    """
    from dfm_jax.run.evaluate import evaluate as figures

    trained, place = _to_evaluate(run, step, overrides, output)
    return figures(trained, place)


def frontier(
    run: "Run | str | os.PathLike",
    *,
    step: "int | None" = None,
    overrides: "Mapping[str, Any] | None" = None,
    output: "str | os.PathLike | None" = None,
    samplers: "Sequence[str | tuple[str, str]]" = (),
) -> "list[dict[str, Any]]":
    """Samples judged over temperatures and numbers of steps, and eval/frontier_step_N.png: perplexity against entropy
    and against evaluations of the network.

    Args, Raises: as `evaluate`; it needs `config.eval.judge`.
        samplers: to compare at equal cost: methods such as "unmask:order=entropy", or (method, corrector) pairs; none
            is the config's own.

    Returns: for each point "method", "corrector", "steps", "temperature", "ppl_token_mean", "entropy_bits" (bits per
    token), "evaluations" (of the network, per text) and others.

    Example:
        >>> dfm_jax.frontier("runs/quickstart", overrides={"eval.judge": "gpt2", "eval.num_samples": 64})
    """
    from dfm_jax.run import arguments, settings
    from dfm_jax.run.evaluate import frontier as figures

    config, _, _ = _named(run, step, overrides)
    pairs: list[tuple[str, str]] = []
    for sampler in samplers:
        given = (sampler, "") if isinstance(sampler, str) else tuple(sampler)
        if len(given) != 2:
            arguments.refuse("samplers", list(samplers), "methods, or (method, corrector) pairs")
        settings.change(config, {"sampling.method": given[0], "sampling.corrector": given[1]}, "eval")
        pairs.append((given[0], given[1]))
    trained, place = _to_evaluate(run, step, overrides, output, frontier=True)
    return figures(trained, place, pairs)


def compare(runs: "Sequence[Run | str | os.PathLike]") -> str:
    """The newest evaluations of several runs side by side, a Markdown table.

    Raises:
        ValueError: there is no run in `runs`.
        WorldError: one was not evaluated.

    Example:
        >>> print(dfm_jax.compare(["runs/quickstart", "runs/mask_gkl"]))
    """
    from dfm_jax.run import arguments, settings
    from dfm_jax.run.evaluate import compare as table

    if isinstance(runs, str) or not len(runs):
        arguments.refuse("runs", runs, "a list of runs or of their folders")
    return table([settings.folder("runs", getattr(run, "folder", run)) for run in runs])


def sample(
    run: "Run | str | os.PathLike",
    num: "int | None" = None,
    *,
    prompt: "str | None" = None,
    prompt_special: bool = False,
    trim: bool = False,
    step: "int | None" = None,
    overrides: "Mapping[str, Any] | None" = None,
    output: "str | os.PathLike | None" = None,
) -> "list[str]":
    """`num` texts, also written as samples/step_N.txt, .jsonl and .html, a page that plays their making.

    `run.sample` draws without writing anything.

    Args:
        run: a loaded run, its folder, or a folder or name on the hub as `load` takes them.
        num: how many; None is `config.sampling.num`; 0 is an empty list, and nothing is written.
        prompt: a beginning, or a text with <gap:N> where N tokens are to be filled in.
        prompt_special: names of special tokens in the prompt, such as <|endoftext|>, stand for them.
        trim: end each text at its first end of text.
        step: of the checkpoint, for a folder; None is the newest.
        overrides: other values of fields, such as {"sampling.steps": 64, "sampling.temperature": 0.9}.
        output: a folder for samples/; None is the run's.

    Raises:
        ValueError: an argument or field cannot be used.
        WorldError: there is no such run or checkpoint, or the folder cannot be written to.

    Example:
        >>> dfm_jax.sample("runs/quickstart", 4, prompt="Once upon a time", overrides={"sampling.seed": 1})
    """
    from dfm_jax.run import arguments
    from dfm_jax.run.sample import check, open_to_sample
    from dfm_jax.run.sample import sample as draw

    if prompt is not None and not isinstance(prompt, str):
        arguments.refuse("prompt", prompt, "a text")
    if num is not None and arguments.integer("num", num, 0) > 0:
        overrides = {**(overrides or {}), "sampling.num": num}
    config, folder, step = _named(run, step, overrides)
    place = _place(run, output)
    with arguments.as_value_errors():
        if num == 0:
            return []
        if isinstance(run, _run_type()) and config == run.config:
            trained = run
            check(config, folder, run.mesh, place, prompt, prompt_special)
        else:
            given = {"prompt": prompt, "special": prompt_special}
            trained = open_to_sample(config, folder, step=step, output=place, **given)
        return draw(trained, prompt=prompt, special=prompt_special, trim=trim, output=place).texts


def import_weights(
    file: "str | os.PathLike",
    workdir: "str | os.PathLike | None" = None,
    *,
    config: "Any" = None,
    overrides: "Mapping[str, Any] | None" = None,
    layout: "str | None" = None,
    mask_id: "int | None" = None,
) -> "Run":
    """Makes a run of published weights or of a checkpoint file of another program, and loads it.

    Args:
        file: a folder with config.json and model.safetensors or pytorch_model.bin, OWNER/NAME of the hub, a
            checkpoint.pth of the PyTorch reference, or a .safetensors file that `export` wrote.
        workdir: the run's folder, without checkpoints; None is runs/NAME, with the name of the folder or file.
        config: what the file does not tell, see `dfm_jax.api`; it must not contradict it. None is the published recipe.
        overrides: other values of its fields.
        layout: whose weights, where config.json does not say: "reference", "sedd", "mdlm", "udlm" or "duo".
        mask_id: the mask's id, where it is inside the vocabulary and no tokenizer tells.

    Raises:
        ValueError: the config and the weights do not agree; the line names the field.
        WorldError: the weights cannot be read or do not fit together, or the folder has checkpoints.

    Example:
        >>> run = dfm_jax.import_weights("kuleshov-group/mdlm-owt", "runs/mdlm")
    """
    from dfm_jax.config import Config
    from dfm_jax.run import arguments, settings
    from dfm_jax.run.publishing.importing import import_weights as convert

    place = None if workdir is None else settings.folder("workdir", workdir)
    source = str(settings.folder("file", file))
    if layout is not None and not isinstance(layout, str):
        arguments.refuse("layout", layout, "the name of a layout, such as mdlm")
    mask_id = None if mask_id is None else arguments.integer("mask_id", mask_id, 0)
    made = settings.resolve(Config() if config is None else config, overrides, "import")
    with arguments.as_value_errors():
        given = config is not None
        return load(convert(source, made, place, config_was_given=given, layout=layout, mask_id=mask_id))


def export(
    run: "Run | str | os.PathLike",
    output: "str | os.PathLike | None" = None,
    *,
    step: "int | None" = None,
    format: str = "safetensors",
    push: "str | None" = None,
    license: "str | None" = None,
) -> "pathlib.Path":
    """Writes a run's checkpoint for other programs or other people, and returns the file or folder.

    Args:
        run: a loaded run or its folder.
        output: the file or folder; None is RUN/export/step_N.safetensors, .pth, or step_N_hub, step_N_mdlm.
        step: of the checkpoint; None is the run's own, or the newest for a folder.
        format: "safetensors", the weights that evaluation uses, or "pytorch", all that the reference trains on from;
            "hub", a folder that `load` takes, with config, tokenizer and model card; "mdlm", a folder in that layout.
        push: OWNER/NAME of the hub, to upload the folder to.
        license: of the weights, for the model card.

    Raises:
        ValueError: the format cannot hold this run, or an argument cannot be used.
        WorldError: there is no such checkpoint, the file cannot be written, or the hub does not take it.

    Example:
        >>> dfm_jax.export("runs/quickstart", "quickstart.safetensors")
        >>> dfm_jax.export("runs/quickstart", "quickstart", format="hub")
        >>> dfm_jax.load("quickstart").sample(2)
    """
    from dfm_jax.run import arguments, settings
    from dfm_jax.run.publishing.exporting import export as convert

    config, folder, step = _named(run, step, None)
    file = None if output is None else str(settings.folder("output", output))
    if not isinstance(format, str) or not format:
        arguments.refuse("format", format, "safetensors, pytorch, hub or mdlm")
    with arguments.as_value_errors():
        return convert(config, folder, step=step, kind=format, output=file, push=push, license=license)


def plan(
    config: "Any",
    target: str,
    *,
    workdir: "str | os.PathLike | None" = None,
    overrides: "Mapping[str, Any] | None" = None,
    sweep: "str | None" = None,
) -> "dict[str, Any]":
    """What the config needs on machines that are not here, from the compiler that would run there: no GPU is needed.

    Args:
        config, overrides: see `dfm_jax.api`.
        target: CHIP:GPUS or CHIP:NODESxGPUS, such as "h100:8" or "h100:2x8".
        workdir: folder of compile.json and compile.md; None is runs/NAME for a config with a name.
        sweep: "all", or some of "mesh,batch,remat": compile many variants of the training step, and rank what fits.

    Returns: the content of compile.json (memory in bytes, lower bounds of times in seconds), or of sweep.json.

    Raises:
        ValueError: the target means nothing, or the mesh does not fit it.
        WorldError: XLA's CUDA compiler is not installed, or the folder cannot be written to.

    Example:
        >>> dfm_jax.plan("model_1_7b", "h100:2x8", workdir="plans/1.7b")
    """
    from dfm_jax import planning
    from dfm_jax.run import arguments, settings

    folder = settings.run_folder(config, workdir)
    made = settings.resolve(config, overrides, "compile")
    with arguments.as_value_errors():
        return planning.run(made, target, folder, axes=sweep)


def benchmark(
    config: "Any",
    workdir: "str | os.PathLike | None" = None,
    *,
    overrides: "Mapping[str, Any] | None" = None,
    only: "Sequence[str] | str | None" = None,
    trace: bool = False,
    seconds: "float | None" = None,
) -> "dict[str, Any]":
    """How fast the devices here run the config's programs: printed, written, and returned.

    Args:
        config, overrides: see `dfm_jax.api`.
        workdir: folder of benchmark.json and benchmark.md; None is runs/NAME for a config with a name.
        only: names of benchmarks, ["train", "head"] or "train,head"; None is all.
        trace: write a `jax.profiler` trace of each.
        seconds: what is not measured by then is named in "left_out"; None is 480, 0 is no end.

    Returns: the content of benchmark.json: "rows", times in seconds with their spread, "machine", and "left_out".

    Raises:
        ValueError: a name is unknown, or the mesh does not fit the devices.
        WorldError: the folder cannot be written to.

    Example:
        >>> dfm_jax.benchmark("quickstart", "runs/bench", only=["train"])["rows"]
    """
    from dfm_jax import benchmarking
    from dfm_jax.run import arguments, settings
    from dfm_jax.runtime import files

    folder = settings.run_folder(config, workdir)
    made = settings.resolve(config, overrides, "benchmark")
    names = only if only is None or isinstance(only, str) else ",".join(map(str, only))
    with arguments.as_value_errors():
        benchmarking.run(made, folder, only=names, trace=trace, seconds=seconds)
    return files.read_json(folder / "benchmark.json")


def _run_type() -> "type[Run]":
    from dfm_jax.run.load import Run

    return Run


def _named(run: "Any", step: "Any", overrides: "Any") -> "tuple[Any, pathlib.Path, int | None]":
    """The config with other values, the folder and the step of a loaded run or of a folder."""
    from dfm_jax import config as configs
    from dfm_jax.run import arguments, settings
    from dfm_jax.run.publishing.loading import find
    from dfm_jax.runtime.errors import WorldError

    step = None if step is None else arguments.integer("step", step, 0)
    if isinstance(run, _run_type()):
        step = run.step if step is None else step
        config, folder = run.config, run.folder
    elif isinstance(run, (str, bytes)) or hasattr(run, "__fspath__"):
        with arguments.as_value_errors():
            folder = find(settings.folder("run", run))
        if not (folder / "config.json").is_file():
            raise WorldError(f"run = {folder}: expected the folder of a run, with its config.json")
        config = configs.load_run(folder)
    else:
        arguments.refuse("run", run, "a loaded run or its folder")
    return settings.change(config, overrides, "eval"), folder, step


def _place(run: "Any", output: "Any") -> "pathlib.Path | None":
    """The folder to write into; None is the run's own. A name on the hub has none but the hub's cache."""
    from dfm_jax.run import settings

    if output is None and isinstance(run, str) and run.startswith("hf:"):
        output = f"runs/{run.rsplit('/', 1)[-1]}"
    return None if output is None else settings.folder("output", output)


def _to_evaluate(
    run: "Any", step: "Any", overrides: "Any", output: "Any", *, frontier: bool = False
) -> "tuple[Run, pathlib.Path | None]":
    """The run to evaluate, after its preflight, and the folder to write into."""
    from dfm_jax.run import arguments
    from dfm_jax.run.evaluate import check, open_to_evaluate

    config, folder, step = _named(run, step, overrides)
    place = _place(run, output)
    with arguments.as_value_errors():
        if isinstance(run, _run_type()) and config == run.config and step == run.step:
            check(config, folder, run.mesh, place, frontier)
            return run, place
        return open_to_evaluate(config, folder, step=step, output=place, frontier=frontier), place
