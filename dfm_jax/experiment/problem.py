"""Makes the mathematical problem of a config: path, source, objective, and the time that the network is told."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dfm_jax import flow
from dfm_jax.config import Config
from dfm_jax.experiment import embeddings as vectors
from dfm_jax.experiment import tables
from dfm_jax.flow.tree import Static
from dfm_jax.models.transformer import TransformerConfig
from dfm_jax.runtime.mesh import replicated

LARGEST_SIGMA = -math.log(1e-3)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Problem:
    """A flow matching problem on a vocabulary. It is a pytree whose leaves are the arrays of its path and source.

    The arrays, such as a law or embeddings, are thus arguments of a jitted function. Shapes in their place serve to
    compile the function.
    """

    path: flow.Path
    source: flow.Source
    objective: flow.Objective
    parametrization: str
    time_input: str
    time_epsilon: float
    time_law: str
    time_sampling: str
    coupling: flow.Coupling
    largest_sigma: float = LARGEST_SIGMA

    def tree_flatten(self) -> tuple[tuple[Any], Static]:
        """The leaves are those of the objective, which holds the path and the source."""
        return (self.objective,), Static({name: getattr(self, name) for name in STATIC})

    @classmethod
    def tree_unflatten(cls, static: Static, children: tuple[Any]) -> "Problem":
        """The problem of an objective and the static fields; path and source are the objective's."""
        problem, (objective,) = object.__new__(cls), children
        found = {"objective": objective, "path": getattr(objective, "path", None)}
        for name, value in {**static.values, **found, "source": getattr(objective, "source", None)}.items():
            object.__setattr__(problem, name, value)
        return problem

    @property
    def counts_masks(self) -> bool:
        """Whether the objective is the count form, which draws a number of masks and no time."""
        return isinstance(self.objective, flow.MaskedCount)

    @property
    def token_objective(self) -> flow.Objective:
        """The objective as a function of each position alone. The count form's factor L / n is the row's weight."""
        if not self.counts_masks:
            return self.objective
        o = self.objective
        return flow.CrossEntropy(o.path, o.source, o.parametrization, o.suppress_mask, corrupted_only=True)

    @property
    def suppress(self) -> int | None:
        """The state that gets probability 0; None for no such state."""
        return self.objective.suppress

    @property
    def learns_exponents(self) -> bool:
        """Whether the exponents of the path's schedules are parameters of the model."""
        return self.path.learns

    def given(self, model: Any) -> "Problem":
        """The problem with the exponents of `model` in its path, if the path learns them; else the problem itself."""
        if not self.learns_exponents:
            return self
        path = self.path.with_leaves(exponents=model.exponents())
        return dataclasses.replace(self, path=path, objective=self.objective.with_leaves(path=path))

    def network_time(self, t: Array | flow.Time) -> Array:
        """The time that the network is told, (B,) float32: t, kappa_t, or sigma = -log kappa_t, as `time_input` says.

        sigma is at most `largest_sigma`: it is infinite at t = 0, and the sinusoids of an infinite number are NaN.
        """
        time = flow.as_time(t)
        if self.time_input == "t":
            return time.t.astype(jnp.float32)
        out = self.path.scheduler(time)
        if self.time_input == "kappa":
            return out.alpha_t.astype(jnp.float32)
        # Near t = 1, 1 - kappa keeps the digits that kappa has lost.
        late = out.alpha_t > 0.5
        sigma = jnp.where(late, -jnp.log1p(-jnp.where(late, out.sigma_t, 0.0)), -jnp.log(out.alpha_t))
        return jnp.minimum(sigma, self.largest_sigma).astype(jnp.float32)


Table = np.ndarray | jax.ShapeDtypeStruct  # numbers over the vocabulary, or their shape
STATIC = tuple(f.name for f in dataclasses.fields(Problem) if f.name not in ("path", "source", "objective"))


@dataclasses.dataclass(frozen=True, eq=False)
class OfProblem:
    """Makes a function of `arguments` from a jitted, lowered or compiled function of (problem, *arguments).

    The problem's arrays are passed to the program and are not constants in it. Every device of `mesh` gets a whole
    copy; with None they stay where they are. A problem with shapes in place of arrays can be lowered and compiled, but
    not called. All other attributes, such as `memory_analysis`, are those of the function.
    """

    function: Any
    problem: Problem
    mesh: Mesh | None = None

    @functools.cached_property
    def placed(self) -> Problem:
        """The problem with its arrays on the devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, self.problem)
        return jax.device_put(self.problem, replicated(self.mesh))

    def __call__(self, *arguments: Any) -> Any:
        return self.function(self.placed, *arguments)

    def lower(self, *arguments: Any) -> "OfProblem":
        """Lowers the function as `jax.jit` does. Arguments may be shapes."""
        place = None if self.mesh is None else replicated(self.mesh)
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype), sharding=place),
            self.problem,
        )
        return dataclasses.replace(self, function=self.function.lower(shapes, *arguments))

    def compile(self, **options: Any) -> "OfProblem":
        """Compiles what `lower` returned."""
        return dataclasses.replace(self, function=self.function.compile(**options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.function, name)


def get_scheduler(config: Config, vocab_size: int) -> flow.Scheduler:
    """The scheduler of the training. Raises ValueError as `flow.get_scheduler` does."""
    return flow.get_scheduler(config.flow.scheduler_type, exponent=config.flow.exponent, vocab_size=vocab_size)


def get_sampling_scheduler(config: Config, vocab_size: int) -> flow.Scheduler | None:
    """The scheduler to sample with, or None for that of the training. Its exponent is the training's, if it has one."""
    name = config.sampling.scheduler
    exponent = config.flow.exponent if name in flow.WITH_EXPONENT else 1.0
    return flow.get_scheduler(name, exponent=exponent, vocab_size=vocab_size) if name else None


def get_source(config: Config, vocab_size: int, law: Table | None = None) -> flow.Source:
    """The source of a config. law: (V,), the unigram law if the config asks for it; None counts it from data.train."""
    if config.flow.source_distribution != "unigram":
        return flow.get_source(config.flow.source_distribution, vocab_size)
    return flow.get_source("categorical", vocab_size, tables.read("law", config, vocab_size) if law is None else law)


def get_path(
    config: Config,
    scheduler: flow.Scheduler,
    source: flow.Source,
    exponents: Table | None = None,
    embeddings: Table | None = None,
) -> flow.Path:
    """The path of a config from `source`. exponents (V,) and embeddings (V, D) replace the files that the config names.

    Raises ValueError if the path does not support the source, and WorldError if a file is missing.
    """
    name, vocab_size = config.flow.path, source.vocab_size
    if name == "three_term":
        return flow.ThreeTermProbPath(scheduler, vocab_size, config.flow.noise)
    if name == "kinetic_optimal":
        if not isinstance(source, flow.CategoricalSource):
            raise ValueError("flow.source_distribution: expected unigram (the others have scalar schedulers)")
        return flow.KineticOptimalProbPath(scheduler, source)
    if name == "genmd4":
        if config.flow.exponents.endswith(".npy") and exponents is None:
            exponents = tables.read("exponents", config, vocab_size)
        learned = config.flow.exponents == "learned"
        return flow.GenMD4ProbPath(scheduler, vocab_size, None if learned else exponents, learned)
    if name == "metric":
        table = tables.read("embeddings", config, vocab_size) if embeddings is None else embeddings
        return vectors.path(config, scheduler, table)
    return flow.MixtureDiscreteProbPath(scheduler)


def get_problem(
    config: Config,
    vocab_size: int,
    law: Table | None = None,
    exponents: Table | None = None,
    embeddings: Table | None = None,
) -> Problem:
    """The problem of a checked config on `vocab_size` data tokens. The others: see `get_source`, `get_path`."""
    source = get_source(config, vocab_size, law)
    path = get_path(config, get_scheduler(config, vocab_size), source, exponents, embeddings)
    objective = flow.get_objective(
        config.flow.loss_function,
        path=path,
        source=source,
        parametrization=config.model.parametrization,
        suppress_mask=config.model.suppress_mask_logit and source.mask_id is not None,
    )
    return Problem(
        path=path,
        source=source,
        objective=objective,
        parametrization=config.model.parametrization,
        time_input=config.model.time_input,
        time_epsilon=config.flow.time_epsilon,
        time_law=config.flow.time_law,
        time_sampling=config.flow.time_sampling,
        coupling=flow.get_coupling(config.flow.coupling),
        largest_sigma=config.model.largest_sigma,
    )


def abstract(config: Config, vocab_size: int) -> Problem:
    """The problem with shapes in place of what is read from data, to compile its programs and to count states."""
    law = jax.ShapeDtypeStruct((vocab_size,), jnp.float32)
    embeddings = None
    if config.flow.path == "metric":
        embeddings = jax.ShapeDtypeStruct((vocab_size, vectors.width(config)), jnp.float32)
    return get_problem(config, vocab_size, law=law, exponents=law, embeddings=embeddings)


def stand_in(config: Config, vocab_size: int) -> Problem:
    """The problem with made-up numbers in place of what is read from data, to time its programs."""
    return get_problem(
        config,
        vocab_size,
        law=np.full(vocab_size, 1 / vocab_size),
        exponents=np.ones(vocab_size),
        embeddings=vectors.stand_in(config, vocab_size) if config.flow.path == "metric" else None,
    )


def get_model_config(config: Config, num_states: int, platform: str | None = None) -> TransformerConfig:
    """The network's architecture for `num_states` token states on `platform` (None: the default backend)."""
    platform = platform or jax.default_backend()
    model = config.model
    compute_dtype = model.compute_dtype
    if compute_dtype == "auto":
        # A CPU multiplies bfloat16 slower than float32.
        compute_dtype = "float32" if platform == "cpu" else "bfloat16"
    return TransformerConfig(
        vocab_size=num_states,
        hidden_size=model.hidden_size,
        cond_dim=model.cond_dim,
        length=model.length,
        n_blocks=model.n_blocks,
        n_heads=model.n_heads,
        dropout=model.dropout,
        mlp_ratio=model.mlp_ratio,
        # cuDNN's backward pass adds in no fixed order, and jax cannot ask for one.
        attention="xla" if config.training.deterministic and model.attention == "auto" else model.attention,
        remat=model.remat,
        compute_dtype=compute_dtype,
        residual_dtype=model.residual_dtype,
        time_scale=model.time_scale,
        time_conditioning=model.time_conditioning,
        qk_norm=model.qk_norm,
        tie_embeddings=model.tie_embeddings,
        token_exponents=config.flow.path == "genmd4" and config.flow.exponents == "learned",
    )
