"""Generates sequences from a trained network, sharded over a mesh. A sequence's key depends only on its number."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfm_jax import flow
from dfm_jax.data import Tokenizer
from dfm_jax.evaluation.prompts import Prompt
from dfm_jax.experiment.problem import OfProblem, Problem
from dfm_jax.models.denoiser import Temperature, TransformerDenoiser
from dfm_jax.models.transformer import Transformer
from dfm_jax.runtime import compiler
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.rng import noise_key


class Samples(NamedTuple):
    """A batch: tokens (B, L) int32, what each sequence took of the network, (B,) int32, and frames (F, B, L) int32, the
    states at `Generator.frame_steps`, or None."""

    tokens: np.ndarray
    evaluations: flow.Evaluations
    frames: np.ndarray | None


def joined(batches: Sequence[Samples]) -> Samples:
    """Several batches as one, without frames."""
    evaluations = (np.concatenate(counts) for counts in zip(*(batch.evaluations for batch in batches), strict=True))
    return Samples(np.concatenate([batch.tokens for batch in batches]), flow.Evaluations(*evaluations), None)


def mean_evaluations(spent: flow.Evaluations) -> dict[str, float]:
    """Means over sequences: `evaluations` of the network, `sequential` ones and `head_rows`."""
    means = {"evaluations": spent.trunk, "sequential": spent.sequential, "head_rows": spent.head_rows}
    return {name: float(counts.mean()) for name, counts in means.items()}


def describe_evaluations(evaluations: flow.Evaluations) -> str:
    """One line: what sequences took of the network, on average and at least and most."""
    trunk, sequential, used = evaluations.trunk, evaluations.sequential, evaluations.used
    line = f"{trunk.mean():.1f} evaluations each ({trunk.min()} to {trunk.max()})"
    if (sequential != trunk).any():
        accepted = used.sum() / max(sequential.sum(), 1)
        line += f", in {sequential.mean():.1f} windows one after the other, {accepted:.2f} accepted in each"
    return f"{line}; {evaluations.head_rows.mean():.0f} rows of the head"


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How sequences are drawn.

    length: tokens per sequence. steps: of the sampler. method: a name of `flow.get_step`. temperature, top_p: of the
    posterior. seed: it gives all the noise of a sequence, together with the sequence's number. scheduler: the schedule
    to sample with; None for that of the training. draft: inputs that the network is given at once, most of them guesses
    of later steps; the sequences are those of draft = 1. corrector: a name of `flow.get_corrector`, '' for none.
    guidance: gamma of the prompt, as `flow.Solver` takes it; 1 is none.
    """

    length: int
    steps: int
    method: str = "exact"
    temperature: Temperature = 1.0
    top_p: float = 1.0
    seed: int = 42
    scheduler: flow.Scheduler | None = None
    draft: int = 1
    corrector: str = ""
    guidance: str | float = "1"

    @property
    def guided(self) -> bool:
        """Whether the prompt guides the posterior."""
        return flow.get_guidance(self.guidance) != 1

    def describe(self) -> dict[str, object]:
        """The settings as plain values, for the files of a sample set."""
        others = {} if self.scheduler is None else {"scheduler": str(self.scheduler)}
        others |= {"draft": self.draft} if self.draft > 1 else {}
        others |= {"corrector": self.corrector} if self.corrector else {}
        others |= {"guidance": str(self.guidance)} if self.guided else {}
        temperature = "a function of t" if callable(self.temperature) else self.temperature
        return {
            "method": self.method,
            "steps": self.steps,
            "temperature": temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "length": self.length,
            **others,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Draws sequences of a problem. It compiles once per batch size.

    With a mesh every device has all parameters and runs its own loops on its rows, without communication. The key of
    sequence i is (seed, i), so the sequence is the same on every mesh and in every batch. With drafts, and fewer
    sequences than devices, the devices work on the same sequences and share the inputs of each window.

    Attributes:
        batch_size: sequences per batch, over the whole mesh; a multiple of its devices.
        frames: how many states of each trajectory are kept, with the first and the last; 0 for none.
        implementation: of the vocabulary head; None chooses.
        deterministic: compiled for the same bits in every run, see `runtime.compiler`.

    Raises UsageError for another batch size, and for a method or corrector that the path or the source does not have.
    """

    problem: Problem
    settings: SamplingSettings
    batch_size: int
    mesh: Mesh | None = None
    frames: int = 0
    implementation: str | None = None
    deterministic: bool = False

    def __post_init__(self):
        devices = 1 if self.mesh is None else self.mesh.size
        if self.batch_size % devices:
            raise UsageError(
                f"config.sampling.batch_size = {self.batch_size}: expected a multiple of {devices} devices"
            )
        field, path, source = "method", self.problem.path, self.problem.source
        try:
            step = path.get_step(self.settings.method)
            field = "corrector"
            if self.settings.corrector:
                flow.get_corrector(self.settings.corrector).check(path, source, isinstance(step, flow.Unmask))
        except ValueError as error:
            raise UsageError(f"config.sampling.{field} = {getattr(self.settings, field)}: {error}") from error

    @functools.cached_property
    def frame_steps(self) -> np.ndarray:
        """(F,) int: the steps after which a state is kept, evenly spread."""
        if not self.frames:
            return np.zeros(0, np.int64)
        return np.unique(np.rint(np.linspace(0, self.settings.steps, max(self.frames, 2))).astype(np.int64))

    @property
    def frame_times(self) -> np.ndarray:
        """(F,) float64: the times of the frames, in [0, 1]."""
        return self.frame_steps / self.settings.steps

    def __call__(
        self, model: Transformer, num: int, *, prompts: Sequence[Prompt] = (), start: int = 0
    ) -> Iterator[Samples]:
        """Yields batches of the `num` sequences start, start + 1, ... The last batch may be shorter.

        prompts: none, one for all sequences, or several that are used in turn. Every process gets every sequence.
        """
        if self.settings.guided and not (prompts and all(prompt.fixed.any() for prompt in prompts)):
            raise UsageError(f"config.sampling.guidance = {self.settings.guidance}: expected a prompt or gaps, or 1")
        devices = 1 if self.mesh is None else self.mesh.size
        shares = self.settings.draft > 1 and num < devices
        size = num if shares else min(self.batch_size, -(-num // devices) * devices)
        for first in range(start, start + num, size):
            index = np.arange(first, first + size, dtype=np.int32)
            given = [prompts[int(i) % len(prompts)] for i in index] if prompts else [self._no_prompt] * len(index)
            tokens = np.stack([prompt.tokens for prompt in given]).astype(np.int32)
            fixed = np.stack([prompt.fixed for prompt in given])
            placed = (self._place(x, shares) for x in (index, tokens, fixed))
            program = self._sharing_program if shares else self._program
            drawn, spent, frames = program(model, *placed)
            count = min(size, start + num - first)
            kept = None if frames is None else np.asarray(frames)[:, :count]
            yield Samples(np.asarray(drawn)[:count], flow.Evaluations(*(np.asarray(e)[:count] for e in spent)), kept)

    def tokens(self, model: Transformer, num: int, *, prompts: Sequence[Prompt] = ()) -> np.ndarray:
        """The first `num` sequences, (num, L) int32."""
        return joined(list(self(model, num, prompts=prompts))).tokens

    @functools.cached_property
    def _no_prompt(self) -> Prompt:
        return Prompt(np.zeros(self.settings.length, np.int32), np.zeros(self.settings.length, bool))

    def _place(self, rows: np.ndarray, whole: bool) -> jax.Array:
        if self.mesh is None:
            return jnp.asarray(rows)
        sharding = NamedSharding(self.mesh, PartitionSpec() if whole else PartitionSpec(self.mesh.axis_names))
        return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    @functools.cached_property
    def _program(self):
        return self._compiled(shares=False)

    @functools.cached_property
    def _sharing_program(self):
        return self._compiled(shares=True)

    def _compiled(self, *, shares: bool):
        """The program of a batch. shares: every device has all its rows, and a part of the inputs of each window."""
        if self.mesh is None:
            return OfProblem(compiler.jit(self._draw, mesh=None, deterministic=self.deterministic), self.problem)
        whole, axes = PartitionSpec(), self.mesh.axis_names
        rows, frames = (whole, whole) if shares else (PartitionSpec(axes), PartitionSpec(None, axes))
        # The loops of a device end when its rows are done, so jax must not check values across devices.
        sharded = jax.shard_map(
            functools.partial(self._draw, split=axes if shares else ()),
            mesh=self.mesh,
            in_specs=(whole, whole, rows, rows, rows),
            out_specs=(rows, rows, frames),
            check_vma=False,
        )
        program = compiler.jit(
            sharded,
            out_shardings=NamedSharding(self.mesh, whole),
            mesh=self.mesh,
            communicates=shares,
            deterministic=self.deterministic,
        )
        return OfProblem(program, self.problem, self.mesh)

    def _draw(
        self,
        problem: Problem,
        model: Transformer,
        index: jax.Array,
        given: jax.Array,
        fixed: jax.Array,
        *,
        split: tuple[str, ...] = (),
    ):
        """The final tokens (B, L), the evaluations, and the frames (F, B, L) or None, of the sequences `index` (B,)."""
        problem, settings = problem.given(model), self.settings
        key = noise_key(settings.seed, "sampling")
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
        x_init = jnp.where(fixed, given, problem.source.sample(keys[:, 0], given.shape))
        denoiser = TransformerDenoiser(
            model=model,
            prediction=problem.path.prediction(problem.source, problem.parametrization, suppress_mask=True),
            network_time=problem.network_time,
            temperature=settings.temperature,
            top_p=settings.top_p,
            implementation=self.implementation,
        )
        solver = flow.Solver(
            denoiser,
            problem.path,
            problem.source,
            step=settings.method,
            scheduler=settings.scheduler,
            corrector=settings.corrector or None,
            guidance=str(settings.guidance),
        )
        sample = functools.partial(solver.sample, keys[:, 1], x_init, steps=settings.steps, fixed=fixed)
        sample = functools.partial(sample, return_evaluations=True, draft=settings.draft, split=split)
        if not self.frames:
            return *sample(), None
        states, evaluations = sample(return_intermediates=self.frame_times.tolist())
        return states[-1], evaluations, states


def generate(
    model: Transformer,
    problem: Problem,
    settings: SamplingSettings,
    num: int,
    *,
    batch_size: int = 16,
    prompts: Sequence[Prompt] = (),
    mesh: Mesh | None = None,
    deterministic: bool = False,
) -> np.ndarray:
    """Draws `num` sequences (num, L) int32. For several calls keep a `Generator`, which compiles only once."""
    generator = Generator(problem, settings, batch_size, mesh, deterministic=deterministic)
    return generator.tokens(model, num, prompts=prompts)


def to_text(tokens: np.ndarray, tokenizer: Tokenizer, *, trim: bool = False, prompt_length: int = 0) -> str:
    """The text of one sequence (L,). With `trim` it stops at the first end of text after `prompt_length` tokens."""
    if trim:
        ends = np.flatnonzero(tokens[prompt_length:] == tokenizer.eos_id)
        tokens = tokens[: prompt_length + ends[0]] if len(ends) else tokens
    return tokenizer.decode(tokens)
