"""Paths, sources, objectives and steps are pytrees: their arrays are arguments of a program, or shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax import flow
from dfm_jax.flow.tree import Kept

V = 4
CLOCK = flow.CondOTScheduler()


def laws() -> list[flow.CategoricalSource]:
    return [flow.CategoricalSource(w / w.sum()) for w in (np.arange(1.0, V + 1), np.arange(V, 0.0, -1))]


@pytest.mark.slow
def test_one_program_serves_every_law_and_table():
    traces = []

    @jax.jit
    def draw(path, source, key):
        traces.append(1)
        x_0 = source.sample(key, (2, 3))
        return path.sample(key, x_0, jnp.zeros((2, 3), jnp.int32), jnp.asarray([0.2, 0.8])).x_t

    rng = np.random.default_rng(0)
    for _ in range(2):
        path = flow.MetricProbPath(CLOCK, rng.normal(size=(V, 2)).astype(np.float32), flow.PowerBeta())
        found = draw(path, flow.UniformSource(V), jax.random.key(0))
        key = jax.random.key(0)
        x_0 = flow.UniformSource(V).sample(key, (2, 3))
        outside = path.sample(key, x_0, jnp.zeros((2, 3), jnp.int32), jnp.asarray([0.2, 0.8])).x_t
        np.testing.assert_array_equal(found, outside)
    assert len(traces) == 1
    for source in laws():
        draw(flow.KineticOptimalProbPath(CLOCK, source), source, jax.random.key(0))
    assert len(traces) == 2
    draw(flow.MixtureDiscreteProbPath(flow.PolynomialConvexScheduler(2.0)), laws()[0], jax.random.key(0))
    assert len(traces) == 3  # another class


def test_a_tree_is_rebuilt_as_it_was():
    source = laws()[0]
    path = flow.KineticOptimalProbPath(CLOCK, source)
    objective = flow.get_objective("generalized_kl", path=path, source=source)
    for tree in (path, source, objective, path.get_step("exact"), flow.TwoStage(0.5)):
        leaves, structure = jax.tree.flatten(tree)
        again = jax.tree.unflatten(structure, leaves)
        assert type(again) is type(tree) and vars(again).keys() == vars(tree).keys()
        assert jax.tree.structure(again) == structure and hash(jax.tree.structure(again)) == hash(structure)
    assert jax.tree.structure(flow.TwoStage(0.5)) != jax.tree.structure(flow.TwoStage(0.25))


def test_shapes_stand_for_numbers():
    shape = jax.ShapeDtypeStruct((V,), jnp.float32)
    source = flow.CategoricalSource(shape)
    path = flow.KineticOptimalProbPath(CLOCK, source)
    metric = flow.MetricProbPath(CLOCK, jax.ShapeDtypeStruct((V, 2), jnp.float32))
    assert [leaf.shape for leaf in jax.tree.leaves(metric)] == [(V, 2), ()]
    numbers = flow.KineticOptimalProbPath(CLOCK, laws()[0])
    assert jax.tree.structure(path) == jax.tree.structure(numbers)
    assert [leaf.shape for leaf in jax.tree.leaves(path)] == [leaf.shape for leaf in jax.tree.leaves(numbers)]

    def loss(path, source, logits):
        objective = flow.get_objective("generalized_kl", path=path, source=source)
        x = jnp.zeros(logits.shape[:-1], jnp.int32)
        return flow.loss_from_logits(objective, logits, x, x, jnp.full(len(x), 0.5))

    found = jax.eval_shape(loss, path, source, jax.ShapeDtypeStruct((2, 3, V), jnp.float32))
    assert found.shape == (2, 3)


def test_leaves_are_replaced_by_name():
    path = flow.GenMD4ProbPath(CLOCK, V, np.ones(V))
    other = path.with_leaves(exponents=2 * np.ones(V))
    assert other.exponents[0] == 2 and path.exponents[0] == 1 and other.scheduler is path.scheduler
    on = path.on(flow.PolynomialConvexScheduler(2.0)).with_leaves_of(other)
    assert on.exponents[0] == 2 and on.scheduler == flow.PolynomialConvexScheduler(2.0)
    with pytest.raises(ValueError, match=r"leaves = \['vocab_size'\]: expected some of \['exponents'\]"):
        path.with_leaves(vocab_size=3)


def test_an_attribute_that_is_not_named_is_a_constant_by_identity():
    class Holder(flow.Tree):
        def __init__(self, table):
            self.table = table

    table = np.ones(3)
    one, same, other = (jax.tree.structure(Holder(t)) for t in (table, table, np.ones(3)))
    assert one == same and one != other
    assert Kept.unwrap(Kept.wrap("own")) == "own" and jax.tree.leaves(Kept.wrap("own")) == []
