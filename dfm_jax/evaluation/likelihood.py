"""The likelihood of a corpus: bounds on -log p per token, each with its standard error over blocks (mathematics.md D).

Every block counts once. The keys of noise and time points depend on a block's number in the corpus. A figure is
therefore the same for every batch size and mesh, and two runs are compared on the same noise.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.evaluation import points
from dfm_jax.evaluation.network import Network, TransformerNetwork, answers_of, batch_program
from dfm_jax.experiment.problem import Problem
from dfm_jax.runtime.mesh import global_batch

SENSITIVITY = (1e-2, 1e-3, 1e-4)
# The tails between the eps of SENSITIVITY, and the average over random orders, take this many times fewer points.
TAIL_SHARE, COUNT_SHARE = 16, 8

Batches = Iterable[tuple[Batch | np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class LikelihoodResult:
    """One bound on -log p of one corpus, in nats per token.

    Attributes:
        bound: the objective's name. process: the process whose -log p it bounds.
        nats_per_token, stderr: the mean over blocks of the mean integrand on kappa in [0, 1 - eps], as the reference
            computes it, and its standard error over blocks (nan for one block).
        perplexity: exp(nats_per_token).
        bits_per_byte: total bits divided by the bytes of the decoded text; nan if the bytes are not known.
        blocks, tokens, time_points, eps: what the figures average over.
        by_eps: nats per token for other eps, from the same points and a few more in the tails.
        exact: (nats per token, standard error) up to kappa = 1; None for a bound that may be infinite there.
        curve: (time_points,) the mean integrand, nats per token, at equal steps of kappa on [0, 1 - eps]. Its mean is
            nats_per_token.
    """

    bound: str
    process: str
    nats_per_token: float
    stderr: float
    perplexity: float
    bits_per_byte: float
    blocks: int
    tokens: int
    time_points: int
    eps: float
    by_eps: dict[float, float] = dataclasses.field(default_factory=dict)
    exact: tuple[float, float] | None = None
    curve: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0), repr=False)


class Segment(NamedTuple):
    """An interval of sigma (high, low), with the number of points and the law (`points.LAWS`) to integrate it."""

    sigma: tuple[float, float]
    points: int
    law: str


@dataclasses.dataclass(frozen=True, eq=False)
class LikelihoodEstimator:
    """Estimates the bounds of a problem. It compiles once per shape of batch.

    time_points: per block, for the main figure. eps: the main figure ends at kappa = 1 - eps. bounds: names of
    objectives; None for those of `flow.Path.bounds_for`, with the average over random orders for the mask source.
    network: how the model is asked; None for the transformer. deterministic: compiled for the same bits in every run,
    see `runtime.compiler`.
    """

    problem: Problem
    time_points: int = 1024
    eps: float = 1e-3
    bounds: Sequence[str] | None = None
    network: Network | None = None
    mesh: Mesh | None = None
    deterministic: bool = False

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the bounds, in the order of the results."""
        if self.bounds is not None:
            return tuple(self.bounds)
        problem = self.problem
        counted = problem.path.counts_masks and problem.source.mask_id is not None
        return (*problem.path.bounds_for(problem.source), *(("masked_count",) if counted else ()))

    @functools.cached_property
    def objectives(self) -> dict[str, flow.Objective]:
        """The bounds by name, on the linear clock. Raises ValueError for an objective that bounds nothing."""
        p = self.problem
        return {
            name: points.linear_objective(name, p.source, p.parametrization, p.objective.suppress_mask, p.path)
            for name in self.names
        }

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The reference's interval, the intervals between the eps of SENSITIVITY, and the rest up to kappa = 1."""
        few = max(1, self.time_points // TAIL_SHARE)
        ends = sorted({*SENSITIVITY, self.eps}, reverse=True)
        return (
            Segment((1.0, self.eps), self.time_points, "uniform"),
            *(Segment((high, low), few, "log") for high, low in itertools.pairwise(ends)),
            Segment((ends[-1], 0.0), few, "squared"),
        )

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated on each batch, one after the other."""
        timed = any(name != "masked_count" for name in self.names)
        points = sum(segment.points for segment in self.segments) if timed else 0
        return points + (self._num_orders if "masked_count" in self.names else 0)

    @property
    def _num_orders(self) -> int:
        return max(1, self.time_points // COUNT_SHARE)

    def __call__(
        self,
        model: Any,
        batches: Batches,
        *,
        key: jax.Array,
        count_bytes: Callable[[np.ndarray], int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, LikelihoodResult]:
        """Computes every bound on the corpus of `batches`: name -> result.

        Args:
            model: the model that `network` asks (a Transformer).
            batches: (tokens (B, L) int32 or a batch of the loader, weights (B,) of 0 or 1) of this process, all of one
                shape. Given positions are shown and not scored. The figures are then of the others given those, divided
                by the tokens that the batch says are counted. Positions that a batch does not score (padding)
                are noised as the rest and have no part in any figure.
            key: one typed key, for all noise.
            count_bytes: tokens (n,) -> the bytes of their text, for bits per byte.
            progress: called after every batch with the number of blocks done.

        Raises:
            ValueError: there is no block.
        """
        rows: list[tuple[np.ndarray, ...]] = []
        curves: list[np.ndarray] = []
        blocks = length = num_bytes = first = num_counted = 0
        for tokens, weights in batches:
            batch = tokens if isinstance(tokens, Batch) else Batch(tokens)
            length = batch.tokens.shape[1]
            if count_bytes is not None:
                texts = counted_tokens(batch)
                num_bytes += sum(count_bytes(row) for row, weight in zip(texts, weights, strict=True) if weight)
            placed = jax.tree.map(jnp.asarray, (batch, weights))
            if self.mesh is not None:
                placed = global_batch((batch, weights), self.mesh)
            values, counts, curve, kept = self._program(model, *placed, np.int32(first), key)
            counted = np.asarray(kept) > 0
            rows.append(tuple(np.asarray(v, np.float64)[..., counted] for v in (values, counts)))
            curves.append(np.asarray(curve, np.float64))
            first += len(counted)
            blocks += int(counted.sum())
            num_counted += int(_sizes(batch)[np.asarray(weights) > 0].sum())
            if progress is not None:
                progress(blocks)
        if not blocks:
            raise ValueError("batches: expected at least one block of weight 1")
        if jax.process_count() > 1:
            of_each = multihost_utils.process_allgather(np.asarray([num_bytes, num_counted]))
            num_bytes, num_counted = of_each.sum(0).tolist()
        values, counts = (np.concatenate(part, axis=-1) for part in zip(*rows, strict=True))
        curve = sum(curves) / blocks
        if num_counted != blocks * length:  # the integrals are means over the rows' positions
            share = blocks * length / num_counted
            values, counts, curve = values * share, counts * share, curve * share
        return self._results(values, counts, curve, blocks, num_counted, num_bytes)

    @functools.cached_property
    def _program(self):
        return batch_program(self._batch, self.problem, self.mesh, deterministic=self.deterministic)

    def _batch(
        self,
        problem: Problem,
        model: Any,
        batch: Batch | jax.Array,
        weights: jax.Array,
        first: jax.Array,
        key: jax.Array,
    ):
        """For one batch: the integrals (segments, K, B), those of the count form, the main curve and the weights.

        All figures are in nats, divided by the length of a row. The curve is summed over rows.
        """
        batch = batch if isinstance(batch, Batch) else Batch(batch)
        tokens = batch.tokens
        index = first + jnp.arange(tokens.shape[0], dtype=jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        path, source = problem.given(model).path, problem.source
        objectives = {
            name: o.with_leaves(path=o.path.with_leaves_of(path), source=source) for name, o in self.objectives.items()
        }
        timed = tuple(o for name, o in objectives.items() if name != "masked_count")
        values, curve = jnp.zeros((len(self.segments), 0, len(tokens))), jnp.zeros((0, self.time_points))
        if timed:
            values, curve = self._integrate(model, batch, weights, keys, timed)
        counts = jnp.zeros((0, len(tokens)))
        if "masked_count" in self.objectives:
            counts = self._orders(model, batch, fold(keys, len(self.segments)))
        return values, counts, curve, weights

    def _integrate(self, model, batch, weights, keys, objectives) -> tuple[jax.Array, jax.Array]:
        """The integrals (segments, K, B), and the mean integrand of segment 0 summed over rows, (K, time_points)."""
        tokens = batch.tokens
        # One loop over the points of all segments, so that the network is compiled once.
        drawn = [
            points.kappa_points(fold(keys, number), segment.points, sigma=segment.sigma, law=segment.law)
            for number, segment in enumerate(self.segments)
        ]
        place: points.KappaPoints = jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)
        owner = np.repeat(np.arange(len(drawn), dtype=np.int32), [segment.points for segment in self.segments])

        def one(total, at):
            number, segment, linear, weight = at
            source_keys, path_keys = noise_keys(keys, number)
            x_0 = objectives[0].source.sample(source_keys, tokens.shape)
            x_t = objectives[0].path.sample(path_keys, x_0, tokens, linear).x_t
            nats = self._ask(model, batch, x_t, linear, objectives)
            return total.at[segment].add(nats * weight[None]), (nats * weights[None]).sum(1)

        zero = jnp.zeros((len(drawn), len(objectives), len(tokens)))
        numbers = np.arange(len(owner), dtype=np.int32)
        total, at_point = jax.lax.scan(one, zero, (numbers, owner, place.linear, place.weight))
        return total, at_point[: self.time_points].T

    def _ask(self, model, batch, x_t, linear: flow.Time, objectives) -> jax.Array:
        """The K bounds at one time of the linear path, (K, B) nats per position, from one pass of the trunk."""
        x_1 = batch.tokens
        if batch.given is not None:
            x_t = flow.conditional_coupling(x_t, x_1, batch.given)
        network = self.network or TransformerNetwork(mesh=self.mesh)
        t = self.problem.network_time(points.training_time(self.problem.path.scheduler, linear))
        features = network.features(model, x_t, t)
        queries = [o.query(x_1, x_t, linear) for o in objectives]
        numbers = points.shared_queries(queries)
        asked = sorted(set(numbers))
        answers = answers_of(network, model, features, [queries[number] for number in asked])
        by_number = dict(zip(asked, answers, strict=True))
        losses = []
        for objective, number in zip(objectives, numbers, strict=True):
            loss = objective(by_number[number], x_1, x_t, linear)
            losses.append(flow.uncharged(loss, _uncharged(batch)).mean(-1))
        return jnp.stack(losses)

    def _orders(self, model, batch, keys) -> jax.Array:
        """The average over random orders, (1, B) nats per token. Its only time is the one that the network is told.

        An order of all positions is one of those that are not given too: a loss at n masks is then L / n times that of
        the masks that are left when the given positions are shown.
        """
        tokens, given = batch.tokens, batch.given
        number = self._num_orders
        length, mask_id = tokens.shape[1], self.problem.source.vocab_size  # the mask comes after the data
        counts = points.mask_counts(fold(keys, 0), number, length)
        objective = self.objectives["masked_count"]

        def one(total, at):
            index, count = at
            x_t = flow.mask_subset(noise_keys(keys, index)[0], tokens, count, mask_id)
            sigma = count.astype(jnp.float32) / length
            linear = flow.Time((length - count).astype(jnp.float32) / length, sigma)
            nats = self._ask(model, batch, x_t, linear, (objective,))
            if given is not None:
                left = ((x_t == mask_id) & ~given).sum(-1)  # by which the objective has divided
                nats = nats * (left / count)[None]
            return total + nats, None

        indices = jnp.arange(number, dtype=jnp.int32)
        total, _ = jax.lax.scan(one, jnp.zeros((1, tokens.shape[0])), (indices, counts))
        return total / number

    def _results(self, values, counts, curve, blocks: int, tokens: int, num_bytes: int) -> dict[str, LikelihoodResult]:
        def result(name: str, per_block: np.ndarray, time_points: int, eps: float, **more) -> LikelihoodResult:
            nats = float(per_block.mean())
            total_bits = nats * tokens / math.log(2)
            return LikelihoodResult(
                bound=name,
                process=self.objectives[name].bounds or "",
                nats_per_token=nats,
                stderr=standard_error(per_block),
                perplexity=float(np.exp(min(nats, 700.0))),  # the exponential of a very loose bound overflows
                bits_per_byte=total_bits / num_bytes if num_bytes else math.nan,
                blocks=blocks,
                tokens=tokens,
                time_points=time_points,
                eps=eps,
                **more,
            )

        results = {}
        for number, name in enumerate(n for n in self.names if n != "masked_count"):
            main, *decades, tail = values[:, number]
            ends = [segment.sigma for segment in self.segments[1:-1]]
            # For a smaller eps add the intervals up to it. For a larger eps subtract them.
            by_eps = {}
            for eps in SENSITIVITY:
                total = main.copy()
                for (high, low), part in zip(ends, decades, strict=True):
                    total += part * ((low >= eps and high <= self.eps) * 1.0 - (high <= eps and low >= self.eps) * 1.0)
                by_eps[eps] = float(total.mean()) / (1 - eps)
            exact = None
            if points.has_exact_tail(self.objectives[name]):
                after = sum((p for (high, _), p in zip(ends, decades, strict=True) if high <= self.eps), start=tail)
                exact = float((main + after).mean()), standard_error(main + after)
            results[name] = result(
                name,
                main / (1 - self.eps),
                self.time_points,
                self.eps,
                by_eps=by_eps,
                exact=exact,
                curve=curve[number],
            )
        if "masked_count" in self.names:
            orders = max(1, self.time_points // COUNT_SHARE)
            results["masked_count"] = result("masked_count", counts[0], orders, 0.0)
        return {name: results[name] for name in self.names}


def counted_tokens(batch: Batch) -> Iterable[np.ndarray]:
    """The tokens of each row that are counted, on the host: those that are neither given nor padding."""
    charged = ~np.asarray(_uncharged(batch))
    for i, row in enumerate(np.asarray(batch.tokens)):
        free = row[charged[i]]
        yield free if batch.counted is None else free[: int(batch.counted[i])]


def _sizes(batch: Batch) -> np.ndarray:
    """(B,): how many tokens of each row are counted, on the host."""
    return np.asarray((~_uncharged(batch)).sum(1) if batch.counted is None else batch.counted, np.float64)


def _uncharged(batch: Batch) -> jax.Array:
    """(B, L) bool: the positions that have no part in a figure."""
    uncharged = jnp.zeros(batch.tokens.shape, jnp.bool_)
    if batch.given is not None:
        uncharged |= batch.given
    return uncharged if batch.scored is None else uncharged | ~batch.scored


def fold(keys: jax.Array, number: Any) -> jax.Array:
    """fold_in of `number` into each of the keys (B,)."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def noise_keys(keys: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys (B,) of x_0 and of the path at a point. The points themselves use small numbers of `keys`."""
    at = fold(keys, number + 1000)
    return fold(at, 0), fold(at, 1)


def standard_error(per_block: np.ndarray) -> float:
    """The standard error of the mean of independent values (n,); nan for n = 1."""
    return float(per_block.std(ddof=1) / math.sqrt(len(per_block))) if len(per_block) > 1 else math.nan


def estimate_likelihood(
    model: Any,
    problem: Problem,
    batches: Batches,
    *,
    key: jax.Array,
    time_points: int = 1024,
    eps: float = 1e-3,
    bounds: Sequence[str] | None = None,
    network: Network | None = None,
    mesh: Mesh | None = None,
    deterministic: bool = False,
    count_bytes: Callable[[np.ndarray], int] | None = None,
) -> dict[str, LikelihoodResult]:
    """The bounds on one corpus. For several corpora keep a `LikelihoodEstimator`, which compiles only once."""
    estimator = LikelihoodEstimator(problem, time_points, eps, bounds, network, mesh, deterministic)
    return estimator(model, batches, key=key, count_bytes=count_bytes)
