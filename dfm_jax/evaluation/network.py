"""How evaluation asks a model, and how it compiles the function that judges one batch."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from dfm_jax import flow
from dfm_jax.experiment.problem import OfProblem, Problem
from dfm_jax.models import head, sharding
from dfm_jax.runtime import compiler
from dfm_jax.runtime.mesh import replicated


class Network(Protocol):
    """What evaluation asks of a model. `TransformerNetwork` is the trained one; tests use exact posteriors."""

    def features(self, model: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """Features (B, L, D) of tokens x_t (B, L) int32 at the network's times t (B,) float32."""
        ...

    def answer(self, model: Any, features: jax.Array, query: flow.HeadQuery) -> flow.HeadAnswer:
        """The vocabulary head's answer to `query` from features (B, L, D): log-probabilities in nats."""
        ...


@dataclasses.dataclass(frozen=True)
class TransformerNetwork:
    """The transformer's trunk and its fused vocabulary head.

    implementation: of the head, as in `models.head.answer`; None chooses. mesh: the devices that share a batch.
    """

    implementation: str | None = None
    mesh: Mesh | None = None

    def features(self, model: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """Runs the trunk; shapes as in `Network.features`."""
        return model(x_t, t, mesh=self.mesh)

    def answer(self, model: Any, features: jax.Array, query: flow.HeadQuery) -> flow.HeadAnswer:
        """Runs the head; shapes as in `Network.answer`."""
        return head.answer(model, features, query, implementation=self.implementation, mesh=self.mesh)

    def answers(self, model: Any, features: jax.Array, queries: Sequence[flow.HeadQuery]) -> Sequence[flow.HeadAnswer]:
        """The answers to several queries, from one product with the vocabulary's matrix."""
        return head.answers(model, features, queries, implementation=self.implementation, mesh=self.mesh)


def answers_of(
    network: Network, model: Any, features: jax.Array, queries: Sequence[flow.HeadQuery]
) -> Sequence[flow.HeadAnswer]:
    """The network's answer to each query; all at once where it has a method `answers`."""
    if hasattr(network, "answers"):
        return network.answers(model, features, queries)  # pyright: ignore[reportAttributeAccessIssue]
    return [network.answer(model, features, query) for query in queries]


def batch_program(
    function: Callable[..., Any], problem: Problem, mesh: Mesh | None, *, deterministic: bool
) -> OfProblem:
    """Compiles `function(problem, *arguments)`, which judges one batch, as a function of `arguments` alone.

    Its results are copied to every device of `mesh`. deterministic: see `runtime.compiler`.
    """
    program = compiler.jit(
        function,
        out_shardings=None if mesh is None else replicated(mesh),
        mesh=mesh,
        communicates=sharding.splits_parameters(mesh),
        deterministic=deterministic,
    )
    return OfProblem(program, problem, mesh)
