"""A trained model, for notebooks, scripts and the modes that work on a run: `dfm_jax.load("runs/NAME")`."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dfm_jax import config as configs
from dfm_jax.checkpoints import published, pytorch
from dfm_jax.checkpoints.published.folder import of_ours
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.config import Config
from dfm_jax.config.accepted import MOST_TIMES
from dfm_jax.data import Tokenizer, get_tokenizer
from dfm_jax.data.packing import PACKED, beginning_of_rows
from dfm_jax.evaluation import long_texts
from dfm_jax.evaluation.generation import Generator, SamplingSettings, to_text
from dfm_jax.evaluation.likelihood import LikelihoodResult, estimate_likelihood
from dfm_jax.evaluation.prompts import Prompt, parse_prompt
from dfm_jax.evaluation.report.samples import beginning
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.experiment import conditions, tables
from dfm_jax.experiment.problem import Problem, get_model_config, get_problem
from dfm_jax.experiment.streams import trains_on_records
from dfm_jax.models import sharding
from dfm_jax.models.transformer import Transformer, count_parameters
from dfm_jax.run import arguments
from dfm_jax.run.network import check_same_network, in_groups
from dfm_jax.runtime import cache, compiler, processes
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.runtime.rng import noise_key
from dfm_jax.runtime.terminal import note

# The part of a checkpoint that evaluation uses: the average where one was kept, else the parameters.
EVALUATED = ("ema", "model")
# Compiled samplers that a run keeps for its next calls.
MOST_GENERATORS = 8


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained model with all that is needed to use it.

    Lists, numpy and jax arrays are taken alike; what cannot be used is a ValueError that names the argument.

    Attributes:
        folder: of the run.
        config: its settings, frozen: `run.config.optim.lr`.
        step: updates applied to the parameters.
        tokenizer: `encode_batch(texts)` to ids, `decode(ids)` to a text.
        problem: path, source and objective, see `dfm_jax.flow`.
        model: the network; the average of the parameters where the run keeps one.
        mesh: the devices that it lies on.
    """

    folder: pathlib.Path
    config: Config
    step: int
    tokenizer: Tokenizer
    problem: Problem
    model: Transformer
    mesh: jax.sharding.Mesh

    def __repr__(self) -> str:
        flow, model = self.config.flow, self.model.config
        return (
            f"Run('{self.folder}', step={self.step}): {count_parameters(model):,} parameters, "
            f"{self.config.tokenizer.name} tokenizer, length {model.length}\n"
            f"  {flow.path} path from {flow.source_distribution}, {flow.loss_function}; "
            f"on {self.mesh.size} {self.mesh.devices.flat[0].platform} device{'s' * (self.mesh.size > 1)}"
        )

    def logits(self, x_t: Any, t: Any) -> Array:
        """(B, L, S) float32 logits as the parametrisation emits them, for S = `problem.source.num_states`.

        Args:
            x_t: (B, L) integer states from 0 to S - 1, L at most `config.model.length`.
            t: time in [0, 1], one number or (B,).

        Raises:
            ValueError: naming the argument.

        Example:
            >>> run.logits([[72, 101, 256]], 0.5).shape
            (1, 3, 384)
        """
        if not arguments.is_spread(x_t):
            x_t = arguments.ids("x_t", x_t, below=self.problem.source.num_states, longest=self.config.model.length)
            t = arguments.times("t", t, len(x_t))
        return self._logits(self.model, jnp.asarray(x_t, jnp.int32), jnp.asarray(t, jnp.float32))

    def sample(
        self,
        num: int = 4,
        *,
        prompt: str | None = None,
        prompt_special: bool = False,
        trim: bool = False,
        **options: Any,
    ) -> list[str]:
        """`num` texts; none are an empty list.

        Args:
            prompt: a beginning, or a text with <gap:N> where N tokens are to be filled in.
            prompt_special: names of special tokens in the prompt, such as <|endoftext|>, stand for them; so they do in
                a run with data.special=parse.
            trim: end each text at its first end of text. A run that trains on records answers a prompt so by itself.
            options: as in `sample_tokens`, such as steps=64, temperature=0.9, seed=1. With a block, or a
                length above the network's, each text is one of `stream`, to its end.

        Raises:
            ValueError: naming the argument.

        Example:
            >>> run.sample(2, prompt="Once upon a time", steps=64)
        """
        if prompt is not None and not isinstance(prompt, str):
            arguments.refuse("prompt", prompt, "a text")
        trim = trim or (prompt is not None and trains_on_records(self.config))
        length, masked = options.get("length"), self.problem.source.mask_id is not None
        longer = isinstance(length, (int, np.integer)) and length > self.config.model.length
        if options.get("block") is not None or (masked and longer):
            given = {"prompt": prompt, "prompt_special": prompt_special, "trim": trim, **options}
            given.pop("batch_size", None)  # a text at a time
            return ["".join(self.stream(index=i, **given)) for i in range(arguments.integer("num", num, 0))]
        length = self._length(length)
        with arguments.as_value_errors():
            special = prompt_special or self.config.data.special == "parse"
            prompts = () if prompt is None else (parse_prompt(prompt, self.tokenizer, length, special=special),)
        tokens, start = self.sample_tokens(num, prompts=prompts, **options), beginning(prompts, 0)
        return [to_text(row, self.tokenizer, trim=trim, prompt_length=start) for row in tokens]

    def stream(
        self,
        prompt: str | None = None,
        *,
        length: int | None = None,
        block: int | None = None,
        index: int = 0,
        prompt_special: bool = False,
        trim: bool = False,
        **options: Any,
    ) -> long_texts.Text:
        """A text of any length: an iterator of pieces, each as soon as its block ends. Joined they are the text with
        its prompt.

        With the mask source a block is generated after the tokens that are there. Longer texts than the network's rows
        see the last tokens that a row holds (`evaluation.long_texts`).

        Args:
            prompt: a beginning.
            length: of the text in tokens, the prompt included; None is the network's.
            block: new tokens at a time; None is half a row, or all where the text fits a row.
            index: which text; each has its own noise.
            prompt_special, trim: as in `sample`. An end of text that ends the text is generated no further.
            options: steps, method, temperature, top_p, seed, draft, corrector, guidance, as in `sample_tokens`. The
                steps are those of a block.

        Raises:
            ValueError: naming the argument; also for several blocks of another source than the mask.

        Example:
            >>> for piece in run.stream("Once upon a time", length=2000):
            ...     print(piece, end="", flush=True)
        """
        row, config = self.config.model.length, self.config
        length = row if length is None else arguments.integer("length", length, 1)
        index = arguments.integer("index", index, 0, long_texts.MOST_TEXTS - 1)
        if prompt is not None and not isinstance(prompt, str):
            arguments.refuse("prompt", prompt, "a text")
        if block is not None:
            block = arguments.integer("block", block, 1)
        masked = self.problem.source.mask_id is not None
        stop = self.tokenizer.eos_id if trim or (prompt is not None and trains_on_records(config)) else -1
        first = beginning_of_rows(self.tokenizer) if config.data.packing in PACKED else -1
        with arguments.as_value_errors():
            blocks = long_texts.Blocks.of(length, block, row, masked, first=first, stop=stop)
            special = prompt_special or config.data.special == "parse"
            given = np.zeros(0, np.int32)
            if prompt:
                parsed = parse_prompt(prompt, self.tokenizer, length, special=special)
                given = long_texts.beginning_of(parsed, prompt)
        settings = self._settings(min(row, length), **options)
        if settings.guided and not len(given):
            arguments.refuse("guidance", settings.guidance, "1, or a prompt")
        with arguments.as_value_errors("config.sampling."):
            generator = self._generator(settings, self.mesh.size)
        new_tokens = long_texts.generate(generator, self.model, given, blocks, index)
        return long_texts.Text(new_tokens, self.tokenizer, given, stop)

    def sample_tokens(
        self,
        num: int = 4,
        *,
        steps: int | None = None,
        method: str | None = None,
        temperature: Any = None,
        top_p: float | None = None,
        seed: int | None = None,
        length: int | None = None,
        batch_size: int | None = None,
        prompts: Sequence[Prompt] = (),
        draft: int | None = None,
        corrector: str | None = None,
        guidance: str | float | None = None,
    ) -> np.ndarray:
        """(num, L) int32 token ids; sequence i depends on (seed, i) alone, not on num, batch_size or the mesh.

        What is None is as the config's sampling group says.

        Args:
            steps: of the sampler, 1 or more.
            method: its step, with options: 'exact', 'euler', 'two_stage:div_free=1', ...
            temperature: of the posterior, 0 or more, or a function of t. top_p: its nucleus, in (0, 1].
            length: L, at most `config.model.length`.
            batch_size: sequences per batch over all devices, a multiple of their number.
            prompts: `Prompt`s of length L, used in turn; see `dfm_jax.evaluation.prompts.parse_prompt`.
            draft: inputs of the network at once (coupled drafts), 1 or more; the tokens do not depend on it.
            corrector: what acts after the steps: 'gibbs:sites=1,rounds=3', 'resample:rate=0.3', ...; '' is none.
            guidance: of a prompt, with the mask source: gamma >= 0, or 'linear:1,3'; 1 is none.

        Raises:
            ValueError: naming the argument.
        """
        num, length = arguments.integer("num", num, 0), self._length(length)
        settings = self._settings(
            length, steps=steps, method=method, temperature=temperature, top_p=top_p, seed=seed, draft=draft,
            corrector=corrector, guidance=guidance,
        )  # fmt: skip
        for prompt in prompts:
            if not isinstance(prompt, Prompt) or prompt.tokens.shape != (length,) or prompt.fixed.shape != (length,):
                raise ValueError(f"prompts: expected Prompts of length {length}, as parse_prompt makes them")
        devices = self.mesh.size
        rows = min(self.config.sampling.batch_size, -(-max(num, 1) // devices)) * devices
        if batch_size is not None:
            rows = arguments.integer("batch_size", batch_size, 1)
            if rows % devices:
                arguments.refuse("batch_size", rows, f"a multiple of the {devices} devices")
        if num == 0:
            return np.zeros((0, length), np.int32)
        with arguments.as_value_errors("config.sampling."):
            return self._generator(settings, rows).tokens(self.model, num, prompts=prompts)

    def _settings(
        self,
        length: int,
        *,
        steps: int | None = None,
        seed: int | None = None,
        temperature: Any = None,
        top_p: float | None = None,
        method: str | None = None,
        draft: int | None = None,
        corrector: str | None = None,
        guidance: str | float | None = None,
    ) -> SamplingSettings:
        """The sampling settings of the config for rows of `length`, with what is not None in its place, checked."""
        changes: dict[str, Any] = {"length": length}
        if steps is not None:
            changes["steps"] = arguments.integer("steps", steps, 1, MOST_TIMES)
        if seed is not None:
            changes["seed"] = arguments.integer("seed", seed, 0)
        if callable(temperature):
            changes["temperature"], temperature = arguments.function_of_time("temperature", temperature), None
        values = {"method": method, "draft": draft, "corrector": corrector, "temperature": temperature, "top_p": top_p}
        values["guidance"] = None if guidance is None else f"{guidance}"
        values = {name: value for name, value in values.items() if value is not None}
        checked = {name: arguments.of_field(name, value, f"sampling.{name}") for name, value in values.items()}
        if checked:
            together = {f"sampling.{name}": value for name, value in checked.items()}
            with arguments.as_value_errors("config.sampling."):
                conditions.check(configs.replace(self.config, together))
        own = EvaluationSettings.from_config(self.config, self.tokenizer.vocab_size).sampling
        return dataclasses.replace(own, **changes, **checked)

    def likelihood(
        self, token_blocks: Any, *, time_points: int | None = None, seed: int = 0
    ) -> dict[str, LikelihoodResult]:
        """Upper bounds on -log p of blocks of tokens, by name: `.nats_per_token` with `.stderr` over the blocks.

        Args:
            token_blocks: (n, L) integer ids from 0 to `tokenizer.vocab_size` - 1, n >= 1, L at most
                `config.model.length`.
            time_points: at which the integrand is averaged, 1 or more; None is `config.eval.time_points`.
            seed: of the noise.

        Raises:
            ValueError: naming the argument.

        Example:
            >>> ids = run.tokenizer.encode_batch(["The same text."])
            >>> {name: bound.nats_per_token for name, bound in run.likelihood(ids, time_points=128).items()}
        """
        config = self.config
        blocks = arguments.ids(
            "token_blocks", token_blocks, below=self.tokenizer.vocab_size, longest=config.model.length
        )
        points = config.eval.time_points
        if time_points is not None:
            points = arguments.of_field("time_points", time_points, "eval.time_points")
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = -(-min(len(blocks), config.eval.batch_size) // rows) * rows
        padded = np.concatenate([blocks, np.zeros((-len(blocks) % size, blocks.shape[1]), np.int32)])
        weights = (np.arange(len(padded)) < len(blocks)).astype(np.float32)
        batches = [(padded[i : i + size], weights[i : i + size]) for i in range(0, len(padded), size)]
        return estimate_likelihood(
            self.model,
            self.problem,
            batches,
            key=noise_key(arguments.integer("seed", seed, 0), "likelihood"),
            time_points=points,
            mesh=self.mesh,
            deterministic=config.training.deterministic,
            count_bytes=lambda row: len(self.tokenizer.decode_bytes(row)),
        )

    def _length(self, length: Any) -> int:
        """The length of samples: the model's, or a shorter one."""
        longest = self.config.model.length
        return longest if length is None else arguments.integer("length", length, 1, longest)

    def _generator(self, settings: SamplingSettings, rows: int) -> Generator:
        """The generator of `settings` for batches of `rows`. The newest ones are kept: each compiles a program."""
        kept = self._generators
        generator = next((g for g in kept if g.batch_size == rows and g.settings == settings), None)
        if generator is None:
            deterministic = self.config.training.deterministic
            generator = Generator(self.problem, settings, rows, self.mesh, deterministic=deterministic)
            kept[:] = kept[-(MOST_GENERATORS - 1) :]
            kept.append(generator)
        return generator

    @functools.cached_property
    def _generators(self) -> list[Generator]:
        return []

    @functools.cached_property
    def _logits(self):
        problem = self.problem

        def logits(model: Transformer, x_t: Array, t: Array) -> Array:
            return model.logits(model(x_t, problem.network_time(t)), suppress=problem.suppress)

        return compiler.jit(
            logits,
            mesh=self.mesh,
            communicates=sharding.splits_parameters(self.mesh),
            deterministic=self.config.training.deterministic,
        )


def load(folder: str | os.PathLike, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None) -> Run:
    """The run in `folder` at its newest intact checkpoint, with `checkpoint.keep_best` at its best one, or at `step`.

    The parameters go onto `mesh` by the rules of training; by default they are whole on every device, which suits
    sampling. Only what evaluation needs is read.

    Raises:
        WorldError: there is no run or no intact checkpoint, or its arrays are not the config's model.
    """
    folder = pathlib.Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise WorldError(f"folder = {folder}: expected the folder of a run, with its config.json")
    return load_with(configs.load_run(folder), folder, step=step, mesh=mesh)


def check_folder(config: Config, folder: pathlib.Path, step: int | None = None) -> Checkpoints | None:
    """The checkpoints of the run in `folder`, which hold the network of `config`. Reads no array.

    Returns None for a folder that `--format=hub` wrote, which holds one.

    Raises:
        WorldError: there is no checkpoint, or none of `step`.
        UsageError: a field of `NETWORK` is not what the checkpoint was trained with.
    """
    if (content := of_ours(folder)) is not None:
        if step not in (None, content.get("step")):
            raise WorldError(f"step = {step}: expected {content.get('step')}, which {folder} holds")
        check_same_network(configs.load_run(folder).to_dict(), config, folder)
        return None
    checkpoints = Checkpoints(folder / "checkpoints")
    if checkpoints.latest_step() is None:
        raise WorldError(f"workdir = {folder}: expected a run with a checkpoint; this one has none yet")
    check_same_network(checkpoints.metadata(step).get("config", {}), config, folder)
    return checkpoints


def used_step(config: Config, folder: pathlib.Path, step: int | None) -> int | None:
    """`step`, or where it is None that of the best checkpoint, if the run keeps one; None is the newest."""
    if step is not None or not config.checkpoint.keep_best:
        return step
    checkpoints = Checkpoints(folder / "checkpoints")
    best = processes.from_first(-1 if (found := checkpoints.best_step()) is None else found)
    if best < 0:
        return None
    if processes.is_first() and best != (newest := checkpoints.latest_step()):
        note(f"checkpoint {best} is used, the best by its evaluation loss; --step={newest} is the newest")
    return best


def load_with(
    config: Config, folder: pathlib.Path, *, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> Run:
    """`load` with a config in place of the saved one; it has to describe the same model.

    What it compiles is kept on disk as `training.compilation_cache` says, unless this process has a cache already.

    Raises:
        UsageError: a field of `NETWORK` is not what the checkpoint was trained with.
    """
    cache.use(config.training.compilation_cache, only_if_none=True)
    step = used_step(config, folder, step)
    checkpoints = check_folder(config, folder, step)
    imported = _published(config, folder) if checkpoints is None else None
    tokenizer = get_tokenizer(config.tokenizer.name)
    problem = get_problem(config, tokenizer.vocab_size, **tables.of_run(config, tokenizer.vocab_size, folder))
    mesh = mesh or make_mesh(MeshShape())
    model_config = get_model_config(config, problem.source.num_states, mesh.devices.flat[0].platform)
    shapes = jax.eval_shape(lambda: Transformer(model_config, rngs=nnx.Rngs(0)))
    places, _ = sharding.state_shardings(shapes, mesh)
    if imported is not None:
        if jax.tree.map(np.shape, jax.tree.leaves(shapes)) != jax.tree.map(np.shape, jax.tree.leaves(imported.model)):
            raise WorldError(f"folder = {folder}: its weights are not the network of its config.json")
        model = placed(shapes, imported.model, places)
        return Run(folder, config, imported.step, tokenizer, problem, model, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
    )
    assert checkpoints is not None
    at, model = checkpoints.restore_subtree(abstract, *EVALUATED, step=step)
    return Run(folder, config, at, tokenizer, problem, model, mesh)


def _published(config: Config, folder: pathlib.Path) -> pytorch.ImportedCheckpoint:
    """The weights of a folder that `--format=hub` wrote, which say themselves what network they are of."""
    try:
        imported = published.read(folder).imported
    except ValueError as error:
        raise WorldError(f"folder = {error}") from error
    check_same_network(in_groups(imported.network), config, folder)
    return imported


def placed(like: Any, value: Any, shardings: Any) -> Any:
    """The host arrays of `value` on the devices, in the tree and dtypes of `like`, whose leaves may be shapes.

    Leaf by leaf: the imported module may differ in what is no array, such as what is recomputed.
    """
    places, structure = jax.tree.flatten(like)
    leaves = zip(places, jax.tree.leaves(value), jax.tree.leaves(shardings), strict=True)
    return structure.unflatten(jax.device_put(jnp.asarray(b, a.dtype), place) for a, b, place in leaves)
