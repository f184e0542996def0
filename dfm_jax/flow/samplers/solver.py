"""The solver: a model, a grid and a step (or a chain without steps) become one compiled program of a trajectory."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.prediction import PathLike
from dfm_jax.flow.samplers import drafts
from dfm_jax.flow.samplers.correctors.settings import Correction
from dfm_jax.flow.samplers.denoiser import Denoiser, DenseDenoiser, check_answers, from_logits
from dfm_jax.flow.samplers.events import Events
from dfm_jax.flow.samplers.grid import TimeGrid, check_count, explicit_grid, make_grid, uniform_grid
from dfm_jax.flow.samplers.guidance import Guidance, GuidedMoves, check_guidance, check_prompt, get_guidance
from dfm_jax.flow.samplers.jumps import Euler, TwoStage
from dfm_jax.flow.samplers.loop import group_size, most_moves, run
from dfm_jax.flow.samplers.moves import Evaluations, State
from dfm_jax.flow.samplers.names import get_corrector
from dfm_jax.flow.samplers.step import DivFree, OtherStep, Step
from dfm_jax.flow.samplers.stochastic import DivFreeEuler
from dfm_jax.flow.samplers.trajectory import Setting, Trajectory, corrected, of_events, of_step, of_unmask
from dfm_jax.flow.samplers.unmasking.unmask import Unmask
from dfm_jax.flow.sources import CategoricalSource, MaskSource, UniformSource

Model = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
    """Samples x_1 by simulating a path's jump process from x_init, with any step.

    model: (x (B, L) int32, t (B,) float32) -> posterior logits (B, L, S), or a `Denoiser`.
    path: gives the scheduler of the training, and the steps by name.
    source: the law of x_0.
    step: a name for the path's `get_step`, or a `Step`.
    corrector: a name for `get_corrector`, or one of its settings; it acts after the steps. None for no corrector.
    guidance: gamma >= 0, a number, a function of kappa (B,) -> (B,), or a string for `get_guidance`. The posterior
        becomes prop. to post(v | x_t)^gamma post(v | x_t without the fixed tokens)^(1 - gamma); 1 is the plain one.
    scheduler: another schedule to sample with. The model then gets the time kappa_train^{-1}(kappa_sample(t)).
    group_size: rows per call of the vocabulary head; None chooses.

    The trajectory is one program, a scan over the steps. Each step first draws which positions jump. It runs the model
    only if some do, and draws x_1 only there, in groups of a fixed size. With the mask source the mask is
    never drawn, and on a path that carries tokens over only masks draw x_1. All noise has a key per sequence, position
    and step, so a sequence does not depend on its batch.

    The program is compiled with XLA's default options. Generation calls it inside another jitted function, and jax
    takes options only for the outer one (`runtime.compiler`).

    Raises ValueError for a path, a step, a corrector or a guidance that do not go together or with the source.
    """

    model: Model | Denoiser
    path: PathLike
    source: Any
    step: str | Step | Events | Unmask = "exact"
    scheduler: Any = None
    group_size: int | None = None
    corrector: str | Correction | None = None
    guidance: str | Guidance = 1.0

    def __post_init__(self):
        # What does not go together raises here, not in the middle of a run.
        if hasattr(self.path, "check"):
            self.path.check(self.source, "posterior")
        given = self.step
        step: Any = self.path.get_step(given) if isinstance(given, str) else given
        if isinstance(step, type) or not (isinstance(step, (Step, Events, Unmask)) or hasattr(step, "plan")):
            raise ValueError(f"step = {given!r}: expected a name, or a step such as flow.Exact()")
        if not isinstance(step, (Step, Events, Unmask)):
            step = OtherStep(step)
        if isinstance(step, Step):
            step.plan(self.path.scheduler, self.source, uniform_grid(1))
        else:
            step.check(self.path, self.source)
        given = self.corrector
        correction: Any = get_corrector(given) if isinstance(given, str) else given
        unmasks = isinstance(step, Unmask)
        if correction is not None:
            if not isinstance(correction, Correction):
                raise ValueError(f"corrector = {given!r}: expected a name, or a corrector such as flow.Gibbs(sites=1)")
            if isinstance(step, Events):
                raise ValueError(f"corrector = {correction.name!r}: expected none with step = {step.name!r}")
            correction.check(self.path, self.source, unmasks)
        if self.group_size is not None:
            check_count("group_size", self.group_size)
        guidance = get_guidance(self.guidance)
        if guidance != 1:
            check_guidance(guidance, self.path, self.source)
        model = self.model if isinstance(self.model, Denoiser) else from_logits(self.model)
        if isinstance(model, DenseDenoiser):
            suppress = self.source.mask_id if model.suppress is None else model.suppress
            model = dataclasses.replace(model, suppress=suppress, num_states=self.source.num_states)
        if isinstance(step, (Step, Unmask)):
            check_answers(model, step.needs, f"step {type(step).__name__}")
        if correction is not None:
            check_answers(model, correction.needs(self.path, self.source, unmasks), f"corrector {correction.name}")
        for name, value in {"step": step, "corrector": correction, "guidance": guidance, "model": model}.items():
            object.__setattr__(self, name, value)

    @functools.cached_property
    def _program(self) -> Callable[..., tuple[State, jax.Array]]:
        denoiser: Any = self.model
        return jax.jit(functools.partial(run, denoiser), static_argnames="group")

    @functools.cached_property
    def _draft_program(self) -> Callable[..., tuple[State, jax.Array, drafts.Counts]]:
        denoiser: Any = self.model
        return jax.jit(functools.partial(drafts.run, denoiser), static_argnames=("group", "draft", "split"))

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
        return_evaluations: bool = False,
        draft: int = 1,
        split: Sequence[str] = (),
    ) -> Any:
        """Samples tokens (B, L) int32 at the last time of the grid, or states (K, B, L) if intermediates are asked for.

        Args:
            key: one typed key, where sequence b uses fold_in(key, b); or (B,) keys, one per sequence.
            x_init: (B, L) int tokens, the state at the first time.
            step_size, steps, time_grid: see `flow.make_grid`. A grid that ends before t = 1 leaves the state as it is.
            div_free: c_t >= 0, a number or a function of t, for step='euler' or 'two_stage'.
            return_intermediates: True for the states at the times of `time_grid` (without one, the first and the last
                state), or a sequence of times. Each is the state at the nearest grid point; a chain without steps gives
                the exact state, and `Unmask` with count or bound the last one with at most that share revealed.
            fixed: (B, L) bool, positions that keep x_init, for prompts and infilling.
            return_evaluations: whether to return the pair (samples, `Evaluations`), what each sequence asked of the
                model.
            draft: how many inputs the trunk evaluates at once, most of them guesses of later moves (`drafts`). The
                samples are those of draft = 1, in fewer evaluations one after the other. Memory grows with it.
            split: names of axes of an enclosing `jax.shard_map` over which these inputs are divided; the arguments are
                then the same on every device.

        May be called inside jit and shard_map. Called directly it compiles once per shape.

        Raises ValueError for arguments of another shape, dtype or range.
        """
        if self.guidance != 1:
            check_prompt(self.guidance, fixed)  # pyright: ignore[reportArgumentType]
        x, keys, fixed = self._checked(key, x_init, fixed)
        draft = check_count("draft", draft)
        own = self.path.scheduler if self.scheduler is None else self.scheduler
        without_times = isinstance(self.step, Unmask) and not self.step.by_schedule
        if without_times and step_size is None and steps is None and time_grid is None:
            steps = 1
        grid, asked = make_grid(own, step_size, steps, time_grid)
        if not isinstance(return_intermediates, (bool, np.bool_)):
            asked = grid.nearest(return_intermediates)
            if without_times:  # the grid is that of the shares
                grid = explicit_grid(np.unique([grid.t[0], *np.ravel(return_intermediates), grid.t[-1]]))
                asked = grid.nearest(return_intermediates)
        elif not return_intermediates:
            asked = np.array([], np.int64)
        # A grid point that is asked for twice has one frame.
        frames, back = np.unique(asked, return_inverse=True)
        trajectory = self._trajectory(grid, div_free, x.shape[1])
        rows, moves = trajectory.rows, trajectory.moves
        if not moves.ends_early:
            where = {int(index): slot for slot, index in enumerate(frames)}
            rows["slot"] = np.array([where.get(int(index), len(frames)) for index in trajectory.index], np.int32)
        given = (keys, x, fixed, rows, moves, trajectory.at[frames])
        group = self.group_size or group_size(len(x) * trajectory.expected)
        draft = min(draft, most_moves(rows))
        if draft == 1:
            final, saved = self._program(*given, group=group)
            counts = None
        else:
            final, saved, counts = self._draft_program(*given, group=group, draft=draft, split=tuple(split))
        samples = saved[back] if len(asked) else final.x
        if not return_evaluations:
            return samples
        used, head_rows = final.evaluations, final.head_rows
        if counts is None:
            return samples, Evaluations(used, head_rows, used, used)
        return samples, Evaluations(counts.inputs, head_rows + counts.guessed_rows, counts.windows, used)

    def _checked(
        self, key: jax.Array, x_init: jax.Array, fixed: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = jnp.asarray(x_init)
        if x.ndim != 2 or not x.size or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"x_init of shape {x.shape}, {x.dtype}: expected integers (B, L)")
        typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if not typed or key.shape not in ((), (x.shape[0],)):
            found = f" of shape {key.shape}, {key.dtype}" if isinstance(key, jax.Array) else f" = {key!r}"
            raise ValueError(f"key{found}: expected jax.random.key, one or (B,)")
        fixed = jnp.zeros(x.shape, jnp.bool_) if fixed is None else jnp.asarray(fixed)
        if fixed.shape != x.shape or fixed.dtype != jnp.bool_:
            raise ValueError(f"fixed of shape {fixed.shape}, {fixed.dtype}: expected bool {x.shape}")
        if key.ndim == 0:
            key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
        # Under shard_map a constant x_init must vary over the mesh axes that its noise varies over.
        zero = (jax.random.key_data(key)[:, :1] & jnp.uint32(0)).astype(jnp.int32)
        return x.astype(jnp.int32) + zero, key, fixed

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
        raise ValueError(f"div_free = {div_free}: expected 0 unless step is 'euler' or 'two_stage'")

    def _trajectory(self, grid: TimeGrid, div_free: DivFree, length: int) -> Trajectory:
        """All moves on `grid`, for sequences of `length` tokens."""
        step: Any = self._with_div_free(div_free)
        own = self.path.scheduler if self.scheduler is None else self.scheduler
        setting = Setting(self.path, self.source, own, grid, length)
        make: Any = of_unmask if isinstance(step, Unmask) else of_events if isinstance(step, Events) else of_step
        trajectory = make(step, setting)
        if self.corrector is not None:
            trajectory = corrected(trajectory, self.corrector, setting)  # pyright: ignore[reportArgumentType]
        if self.guidance == 1:
            return trajectory
        guided = GuidedMoves(trajectory.moves, self.guidance, self.path.scheduler, self.source.mask_id)  # pyright: ignore
        return trajectory._replace(moves=guided)


MixtureDiscreteSolver = Solver  # the name in version 0.1


class MixtureDiscreteEulerSolver(Solver):
    """The reference's Euler solver, with its constructor. Its samples have the same law.

    model: (x, t) -> posterior logits (B, L, vocabulary_size). source_distribution_p: (vocabulary_size,), the law of
    x_0, needed for div_free > 0. A point mass on the last id is the mask source, where tokens other than the mask stay.
    It differs from the reference in two points: a grid that ends before t = 1 leaves the state as it is, and div_free
    counts as 0 at t = 0. Raises ValueError for a law of another length.
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
                f"source_distribution_p of shape {law.shape}: expected ({vocabulary_size},) = (vocabulary_size,)"
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
            raise ValueError(
                "source_distribution_p = None: expected the source law (vocabulary_size,) with div_free > 0"
            )
        return super()._with_div_free(div_free)
