"""The evaluation loss: the training objective over a whole corpus, with the same noise at every step of a run."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dfm_jax import flow
from dfm_jax.data import Batch
from dfm_jax.evaluation.likelihood import fold, standard_error
from dfm_jax.evaluation.network import Network, TransformerNetwork, batch_program
from dfm_jax.experiment.problem import Problem
from dfm_jax.runtime.mesh import global_batch
from dfm_jax.training import corruption

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationLoss:
    """The training objective in nats per predicted token, to compare with the training loss.

    Block i has the time t_i = (1 - time_epsilon) frac((i + 1/2) golden ratio). These times fill [0, 1 - time_epsilon]
    evenly for any number of blocks. The key of the noise depends on i. So two steps of a run, or two runs, use the same
    x_t, in any batches and on any mesh. As in training, fixed positions carry no loss.
    """

    problem: Problem
    network: Network | None = None
    mesh: Mesh | None = None
    deterministic: bool = False

    def __call__(self, model: Any, batches: Iterable[tuple[Batch, np.ndarray]], *, key: jax.Array) -> dict[str, float]:
        """Returns `eval/loss`, its standard error over blocks `eval/loss_stderr`, and `eval/perplexity`.

        `eval/perplexity` is exp(loss), if the objective bounds a likelihood. Of records it is exp of the loss of a
        response, with that of the padding after it, per token of the response; `eval/loss` counts the padding too.
        batches: (rows, weights (B,) of 0 or 1) of this process. key: one typed key. Raises ValueError without a block
        of weight 1.
        """
        losses, predicted, sizes, first = [], [], [], 0
        for rows in batches:
            rows = jax.tree.map(jnp.asarray, rows) if self.mesh is None else global_batch(rows, self.mesh)
            index = first + np.arange(len(rows[1]))
            loss, counts = (
                np.asarray(x, np.float64)
                for x in self._program(model, *rows, index.astype(np.int32), *self.times(index), key)
            )
            count, weight, size = counts
            losses.append(loss[weight > 0])
            predicted.append(count[weight > 0])
            sizes.append(size[weight > 0])
            first += len(index)
        total, counts, counted = (np.concatenate(x) if x else np.zeros(0) for x in (losses, predicted, sizes))
        if not len(total):
            raise ValueError("batches: expected at least one block of weight 1")
        mean = float(total.sum() / counts.sum())
        figures = {"eval/loss": mean, "eval/loss_stderr": standard_error(total / counts.mean())}
        if self.problem.objective.bounds is not None:
            figures["eval/perplexity"] = float(np.exp(min(total.sum() / counted.sum(), 700.0)))
        return figures

    def times(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(t, 1 - t) float32 of blocks `index` (B,)."""
        share = np.modf((np.asarray(index, np.float64) + 0.5) * GOLDEN)[0] * (1.0 - self.problem.time_epsilon)
        return share.astype(np.float32), (1.0 - share).astype(np.float32)

    @functools.cached_property
    def _program(self):
        return batch_program(self._batch, self.problem, self.mesh, deterministic=self.deterministic)

    def _batch(self, problem: Problem, model, batch, weights, index, t, r, key):
        """For each row the loss summed over its predicted positions, (B,); and (3, B): their number, the row's weight,
        and the number of tokens that a perplexity is divided by.
        """
        problem, network = problem.given(model), self.network or TransformerNetwork(mesh=self.mesh)
        objective, tokens = problem.token_objective, batch.tokens
        time = flow.Time(t, r)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        kept = problem.coupling.kept(fold(keys, 0), tokens.shape)
        kept = kept if batch.given is None else kept | batch.given
        x_0 = problem.source.sample(fold(keys, 1), tokens.shape)
        path_keys = fold(keys, 1 if problem.counts_masks else 2)  # the count form does not use x_0
        x_t, weight = corruption.x_t(tokens, kept, x_0, time, path_keys, problem)
        kept = kept if batch.scored is None else kept | ~batch.scored
        features = network.features(model, x_t, problem.network_time(time))
        answer = network.answer(model, features, objective.query(tokens, x_t, time))
        nats = objective(answer, tokens, x_t, time)
        nats = flow.uncharged(nats if weight is None else nats * weight[:, None], kept)
        predicted = (~kept).sum(axis=1).astype(jnp.float32)
        counted = predicted if batch.counted is None else jnp.minimum(batch.counted, predicted)
        # In one array, which the devices of a mesh exchange at once.
        return nats.sum(axis=1), jnp.stack([predicted, weights, counted])
