"""The solver of the mixture path: one compiled loop for every step kernel, the model run only where tokens
jump."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow import categorical
from dfm_jax.flow.denoiser import Denoiser, DenseDenoiser, draw_where, from_logits
from dfm_jax.flow.events import Events, FirstHitting, Thinning, simulate
from dfm_jax.flow.grids import TimeGrid, make_grid, uniform_grid
from dfm_jax.flow.path_base import GeneralPath
from dfm_jax.flow.sources import CategoricalSource, MaskSource, UniformSource
from dfm_jax.flow.steps import Corrector, DivFree, Euler, Exact, Knots, Plan, Step, TwoStage, is_uniform
from dfm_jax.flow.steps_stochastic import Ancestral, DivFreeEuler, Multiflow, Remask

STEPS: dict[str, Any] = {
    "exact": Exact,
    "maximal": Exact,  # the maximal coupling of C_t and C_s
    "euler": Euler,
    "div_free_euler": DivFreeEuler,
    "two_stage": TwoStage,
    "corrector": Corrector,
    "multiflow": Multiflow,
    "ancestral": Ancestral,
    "remask": Remask,
    "first_hitting": FirstHitting,
    "thinning": Thinning,
}
Model = Callable[[jax.Array, jax.Array], jax.Array]


def get_step(name: str, **options: Any) -> Step | Events:
    """The step kernel of a name: exact (or maximal), euler, div_free_euler, two_stage, corrector, multiflow,
    ancestral, remask; or the chain without steps, first_hitting or thinning.

    options: two_stage and div_free_euler div_free; corrector iterations, strength; multiflow eta; remask schedule,
    eta; thinning delta. They may also follow the name, as in "two_stage:div_free=1" or
    "corrector:iterations=2,strength=0.3". ValueError otherwise.
    """
    name, _, written = name.partition(":")
    options = {**_written_options(written), **options}
    if name not in STEPS:
        raise ValueError(f"step={name!r}: accepted {', '.join(STEPS)}")
    defaults = {field.name: field.default for field in dataclasses.fields(STEPS[name]) if field.init}
    if not set(options) <= set(defaults):
        raise ValueError(f"step={name!r} with options {sorted(options)}: accepted options {list(defaults)}")
    for option, value in options.items():
        if isinstance(value, str) != isinstance(defaults[option], str):
            kind = "a word" if isinstance(defaults[option], str) else "a number"
            raise ValueError(f"step={name!r} with option {option}={value!r}: accepted {kind}")
    return STEPS[name](**options)


def _written_options(text: str) -> dict[str, Any]:
    """ "a=1,b=0.5,c=word" as {"a": 1, "b": 0.5, "c": "word"}."""
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ValueError(f"step option {part!r}: accepted NAME=VALUE")
        options[key] = value
        for kind in (int, float):
            try:
                options[key] = kind(value)
                break
            except ValueError:
                continue
    return options


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureDiscreteSolver:
    """Samples x_1 by simulating the mixture path's jump process from x_init, with any step kernel.

    model: (x (B, L) int32, t (B,) float32) -> posterior logits (B, L, S), or a `Denoiser`. path: gives the
    scheduler of the training, and where it is not the mixture its own steps. source: the law of x_0. step: a name
    of `get_step` or a kernel. scheduler: another
    schedule to sample with; the model then sees t' = kappa_train^{-1}(kappa_sample(t)). group_size: rows per call
    of the vocabulary head; None chooses.

    The trajectory is one program: a scan over the steps. Each step first draws which positions jump, runs the
    model only if some do, and draws x_1 only there, in fixed-size groups. With the mask source revealed tokens
    never jump and the mask is never drawn. All noise is keyed per sequence, position and step: a sequence does not
    depend on its batch. The program is compiled with XLA's own options: jax takes none for a function that is called
    inside another jitted one, as generation calls this one, and the outer one has those of `runtime.compiler`.
    """

    model: Model | Denoiser
    path: Any
    source: Any
    step: str | Step | Events = "exact"
    scheduler: Any = None
    group_size: int | None = None

    def __post_init__(self):
        if isinstance(self.step, str):
            step = self.path.get_step(self.step) if isinstance(self.path, GeneralPath) else get_step(self.step)
            object.__setattr__(self, "step", step)
        # A kernel that cannot serve this source says so here, not in the middle of a run.
        kernel: Any = self.step
        if isinstance(kernel, Events):
            if isinstance(self.path, GeneralPath):
                raise ValueError(f"step={kernel.name!r}: accepted the mixture path only")
            kernel.check(self.source)
        else:
            kernel.plan(self.path.scheduler, self.source, uniform_grid(1))
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size={self.group_size}: accepted a positive integer")
        model = self.model if isinstance(self.model, Denoiser) else from_logits(self.model)
        if isinstance(model, DenseDenoiser):
            suppress = self.source.mask_id if model.suppress is None else model.suppress
            model = dataclasses.replace(model, suppress=suppress, num_states=self.source.num_states)
        object.__setattr__(self, "model", model)

    @functools.cached_property
    def _program(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return jax.jit(self._run, static_argnames=("step", "group", "slots"))

    @functools.cached_property
    def _event_program(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        denoiser: Any = self.model
        step: Any = self.step
        run = functools.partial(simulate, denoiser, self.path.scheduler, self.source.mask_id, step.delta)
        return jax.jit(run, static_argnames="group")

    def sample(
        self,
        key: jax.Array,
        x_init: jax.Array,
        step_size: float | None = None,
        *,
        steps: int | None = None,
        time_grid: str | TimeGrid | Sequence[float] | None = None,
        div_free: DivFree = 0.0,
        return_intermediates: bool | Sequence[float] = False,
        fixed: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens (B, L) int32 at the last time of the grid, or (K, B, L) states if intermediates are asked for.

        key: one typed key, sequence b then uses fold_in(key, b), or (B,) keys, one per sequence. x_init (B, L) int
        tokens. step_size | steps | time_grid: see `flow.make_grid`; the last step is shortened to end where the
        grid ends, and a grid that ends before t = 1 leaves the state where it is. div_free: c_t >= 0, a number or
        function of t, for step='euler' or 'two_stage'. return_intermediates: True for the states at the times of
        time_grid (initial and final when there is none), or a sequence of times; each is the state at the nearest
        grid point, a chain without steps gives the exact one. fixed (B, L) bool: positions that keep x_init (prompt,
        infilling), for every method.

        May be called inside jit and shard_map; called directly it compiles once per shape. Raises ValueError.
        """
        x, keys, free = self._checked(key, x_init, fixed)
        own = self.path.scheduler if self.scheduler is None else self.scheduler
        grid, asked = make_grid(own, step_size, steps, time_grid)
        if not isinstance(return_intermediates, bool):
            asked = grid.nearest(return_intermediates)
        elif not return_intermediates:
            asked = np.array([], np.int64)
        # One slot per grid point that is asked for, even if it is asked for twice.
        slots, back = np.unique(asked, return_inverse=True)
        if isinstance(self.step, Events):
            if callable(div_free) or div_free != 0:
                raise ValueError(f"div_free={div_free}: accepted 0 with step={self.step.name!r}")
            sigma = Knots.of(own, grid).sigma
            ends = np.array([sigma[0], sigma[-1]], np.float32)
            # Whatever is left at `delta` jumps in one step.
            group = self.group_size or _group_size(np.array([x.size]))
            final, saved = self._event_program(keys, x, free, ends, sigma[slots].astype(np.float32), group=group)
        else:
            step = self._with_div_free(div_free)
            plan = step.plan(own, self.source, grid)
            waiting = 1.0 if self.source.mask_id is None else own.float64(plan.time).sigma
            group = self.group_size or _group_size(x.size * plan.jumps * waiting)
            rows = self._rows(own, plan, slots)
            final, saved = self._program(keys, x, free, rows, step=step, group=group, slots=len(slots))
        return saved[back] if len(asked) else final

    def _checked(
        self, key: jax.Array, x_init: jax.Array, fixed: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = jnp.asarray(x_init)
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"x_init of shape {x.shape}, {x.dtype}: accepted integers (B, L)")
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (x.shape[0],)):
            raise ValueError(f"key of shape {key.shape}, {key.dtype}: accepted jax.random.key, one or (B,)")
        if fixed is not None and (fixed.shape != x.shape or fixed.dtype != jnp.bool_):
            raise ValueError(f"fixed of shape {fixed.shape}, {fixed.dtype}: accepted bool {x.shape}")
        if key.ndim == 0:
            key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
        free = jnp.ones(x.shape, jnp.bool_) if fixed is None else jnp.logical_not(fixed)
        # Under shard_map a constant x_init must vary over the mesh axes that its noise varies over.
        zero = (jax.random.key_data(key)[:, :1] & jnp.uint32(0)).astype(jnp.int32)
        return x.astype(jnp.int32) + zero, key, free

    def _with_div_free(self, div_free: DivFree) -> Step:
        step: Any = self.step
        if not callable(div_free):
            div_free = float(div_free)  # a jax scalar could not be an argument of the kernel, which is static
            if div_free == 0:
                return step
        if isinstance(step, Euler):
            return DivFreeEuler(div_free)
        if isinstance(step, TwoStage):
            return TwoStage(div_free)
        raise ValueError(f"div_free={div_free}: accepted 0 unless step is 'euler' or 'two_stage'")

    def _rows(self, own: Any, plan: Plan, slots: np.ndarray) -> dict[str, np.ndarray]:
        """What the scan runs over: scalars rounded to float32 once, the network's time, the slot a state goes
        to."""
        time = plan.time.t
        if self.scheduler is not None:
            value = own.float64(plan.time.t, plan.time.r)
            time = self.path.scheduler.float64_inverse(value.kappa, value.sigma).t
        rows: dict[str, np.ndarray] = {name: np.asarray(value, np.float32) for name, value in plan.scalars.items()}
        where = {int(index): slot for slot, index in enumerate(slots)}
        rows["time"] = np.asarray(time, np.float32)
        rows["slot"] = np.array([where.get(int(index), len(slots)) for index in plan.index], np.int32)
        rows["number"] = np.arange(len(time), dtype=np.int32)
        return rows

    def _run(
        self,
        keys: jax.Array,
        x: jax.Array,
        free: jax.Array,
        rows: dict[str, jax.Array],
        *,
        step: Step,
        group: int,
        slots: int,
    ) -> tuple[jax.Array, jax.Array]:
        batch, length = x.shape
        mask_id = self.source.mask_id
        carried = mask_id is not None and (not isinstance(self.path, GeneralPath) or self.path.carries_over)
        denoiser: Any = self.model

        def one_step(carry, row):
            x, saved = carry
            step_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, row["number"]), 3))(keys)
            bits = jax.vmap(lambda key: jax.random.bits(key, (step.words, length), jnp.uint32))(step_keys[:, 0])
            u = categorical.uniform(jnp.moveaxis(bits, 1, 0))
            y = fresh_tokens(step.fresh, self.source, step_keys[:, 1], x)
            needed = step.decide(row, x, u, self.source) & free
            if carried:
                needed &= x == mask_id
            t = jnp.broadcast_to(row["time"], (batch,))
            x_1 = draw_where(denoiser, step_keys[:, 2], x, t, needed, group)
            x = jnp.where(free, step.move(row, x, x_1, u, y, self.source), x)
            if slots:
                saved = saved.at[row["slot"]].set(x, mode="drop")
            return (x, saved), None

        # Every slot starts as x_init: the grid's first point is asked for under index 0.
        saved = jnp.broadcast_to(x[None], (slots, batch, length))
        (x, saved), _ = jax.lax.scan(one_step, (x, saved), rows)
        return x, saved


def fresh_tokens(kind: str, source: Any, keys: jax.Array, x: jax.Array) -> jax.Array:
    """y (B, L) for the step kernels, one key per sequence: 'none' x itself, 'source' y ~ p, 'others' y ~ p given y
    != z, 'data' a uniform data token, 'data_others' a uniform one that is not z.

    'others' is exact for mask and uniform sources; a general source law gives y ~ p, which may be z (then nothing
    moves).
    """
    if kind == "none":
        return x
    if kind in ("data", "data_others"):
        size = source.vocab_size
        fresh = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 0, size, jnp.int32))(keys)
        if kind == "data":
            return fresh
        skip = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 1, size, jnp.int32))(keys)
        return jnp.where(x < size, (x + skip) % size, fresh)
    if source.mask_id is not None:
        return jnp.full(x.shape, source.mask_id, x.dtype)
    if kind == "others" and is_uniform(source):
        states = source.num_states
        skip = jax.vmap(lambda key: jax.random.randint(key, x.shape[1:], 1, states, jnp.int32))(keys)
        return (x + skip) % states
    return jax.vmap(lambda key: source.sample(key, x.shape[1:]))(keys).astype(x.dtype)


def _group_size(expected: np.ndarray) -> int:
    """Rows per call of the head that make it cheapest, for `expected` (M,) jumps in each step.

    A call costs its rows and a fixed part (reading the head's weights), worth about 64 rows between CPUs and GPUs.
    """
    sizes = 2 ** np.arange(3, 11)
    calls = np.ceil((expected + np.sqrt(expected)) / sizes[:, None])
    return int(sizes[(calls * (sizes[:, None] + 64)).sum(-1).argmin()])


class MixtureDiscreteEulerSolver(MixtureDiscreteSolver):
    """The reference's Euler solver in law, by its own constructor.

    model: (x, t) -> posterior logits (B, L, vocabulary_size). source_distribution_p (vocabulary_size,): the law of
    x_0, needed for div_free > 0; a point mass on the last id is the mask source, whose revealed tokens then stay.
    Unlike the reference, a grid that ends before t = 1 leaves the state where it is, and div_free counts as 0 at t
    = 0.
    """

    _source_known: bool

    def __init__(
        self,
        model: Model | Denoiser,
        path: Any,
        vocabulary_size: int,
        source_distribution_p: jax.Array | np.ndarray | None = None,
    ):
        law = None if source_distribution_p is None else np.asarray(source_distribution_p, np.float64)
        if law is not None and law.shape != (vocabulary_size,):
            raise ValueError(
                f"source_distribution_p of shape {law.shape}: accepted ({vocabulary_size},) = (vocabulary_size,)"
            )
        if law is None or np.allclose(law, 1.0 / vocabulary_size, rtol=1e-6, atol=0.0):
            source: Any = UniformSource(vocabulary_size)
        elif law[-1] == 1.0:
            source = MaskSource(vocabulary_size - 1)
        else:
            source = CategoricalSource(law)
        object.__setattr__(self, "_source_known", law is not None)
        super().__init__(model, path, source, step="euler")

    def _with_div_free(self, div_free: DivFree) -> Step:
        if not self._source_known and (callable(div_free) or div_free != 0):
            raise ValueError("source_distribution_p=None: accepted the source law (vocabulary_size,) with div_free > 0")
        return super()._with_div_free(div_free)
