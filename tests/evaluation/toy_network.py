"""The exact posterior of a toy law as a network: what an estimate must be is then known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import flow
from dfm_jax.experiment.problem import Problem


def make_problem(
    source, scheduler="polynomial", *, exponent=1.0, parametrization="posterior", suppress=True
) -> Problem:
    path = flow.MixtureDiscreteProbPath(flow.get_scheduler(scheduler, exponent=exponent))
    objective = flow.get_objective(
        "generalized_kl",
        path=path,
        source=source,
        parametrization=parametrization,
        suppress_mask=suppress and source.mask_id is not None,
    )
    return Problem(
        path=path,
        source=source,
        objective=objective,
        parametrization=parametrization,
        time_input="t",
        time_epsilon=1e-3,
        time_law="uniform",
        time_sampling="iid",
        coupling=flow.get_coupling("independent"),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ExactNetwork:
    """Logits of p(x_1^i | x_t), or of p(x_1^i | x_t without x_t^i), for data (n, L) with weights q (n,)."""

    problem: Problem
    data: np.ndarray
    q: np.ndarray

    def features(self, model, x_t, t):
        states, vocab = self.problem.source.num_states, self.problem.source.vocab_size
        schedule = self.problem.path.scheduler(t)
        kappa, sigma = schedule.alpha_t[:, None, None], schedule.sigma_t[:, None, None]
        here = (x_t[:, None, :] == jnp.asarray(self.data)[None]).astype(jnp.float32)
        law = kappa * here + sigma * self.problem.source.probs(x_t)[:, None, :]  # (B, n, L)
        if self.problem.parametrization == "leave_one_out":
            length = x_t.shape[1]
            others = [jnp.prod(jnp.delete(law, i, axis=2), axis=2) for i in range(length)]
            weight = jnp.stack(others, axis=2)
        else:
            weight = jnp.broadcast_to(law.prod(axis=2, keepdims=True), law.shape)
        weight = weight * jnp.asarray(self.q, jnp.float32)[None, :, None]
        match = jax.nn.one_hot(self.data, states, dtype=jnp.float32)  # (n, L, S)
        joint = jnp.einsum("bnl,nls->bls", weight, match, precision="highest")
        # A state of the other law's support that this one excludes: any law will do.
        joint = jnp.where(joint.sum(-1, keepdims=True) > 0, joint, 1.0)
        return jnp.where(jnp.arange(states)[None, None] < vocab, jnp.log(joint), -jnp.inf)

    def answer(self, model, features, query):
        return flow.answer_from_logits(features, query)


def draw_batches(rng: np.random.Generator, data, q, blocks: int, batch_size: int):
    """Blocks drawn from q, in batches of which the last is filled with rows of weight 0."""
    drawn = data[rng.choice(len(q), size=blocks, p=q)].astype(np.int32)
    for start in range(0, blocks, batch_size):
        part = drawn[start : start + batch_size]
        weights = np.zeros(batch_size, np.float32)
        weights[: len(part)] = 1.0
        yield np.concatenate([part, np.zeros((batch_size - len(part), data.shape[1]), np.int32)]), weights
