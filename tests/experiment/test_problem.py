"""A problem's tables are arguments of its programs: as arrays where it runs, as shapes where it is compiled alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.configs import base
from dfm_jax.experiment.problem import OfProblem, abstract, get_problem

V, D = 7, 3
LAW = np.arange(1.0, V + 1) / (V * (V + 1) / 2)


def config_of(path: str, source: str) -> Any:
    config = base.get_config()
    config.flow.path, config.flow.source_distribution, config.flow.loss_function = path, source, "cross_entropy"
    config.flow.embeddings = f"random:{D}"
    return config


def test_a_network_may_be_told_sigma_which_ends_where_its_training_did():
    config = config_of("mixture", "mask")
    config.model.time_input, config.flow.exponent = "sigma", 2.0
    t = jnp.asarray([0.0, 1e-3, 0.25, 0.5, 0.9, 1 - 2.0**-20, 1.0])
    told = np.asarray(get_problem(config, V).network_time(t))
    exact = np.append(np.minimum(-2 * np.log(np.asarray(t, np.float64)[1:]), np.log(1000)), [])
    np.testing.assert_allclose(told, [np.log(1000), *exact], rtol=1e-6)
    config.model.largest_sigma = 20.0
    assert float(get_problem(config, V).network_time(t)[0]) == 20.0
    assert get_problem(config, V).network_time(t).dtype == jnp.float32


def draw(problem, t):
    x_0 = problem.source.sample(jax.random.key(1), (2, 5))
    return problem.path.sample(jax.random.key(0), x_0, jnp.zeros((2, 5), jnp.int32), t).x_t


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    ("path", "source", "tables"), [("metric", "uniform", 2), ("kinetic_optimal", "unigram", 9), ("mixture", "mask", 0)]
)
def test_tables_are_arguments(path, source, tables):
    config, t = config_of(path, source), jnp.asarray([0.3, 0.7])
    problem = get_problem(config, V, law=LAW)
    assert len(jax.tree.leaves(problem)) == tables
    program = OfProblem(jax.jit(draw), problem)
    np.testing.assert_array_equal(program(t), draw(problem, t))
    shapes = abstract(config, V)
    assert jax.tree.structure(shapes) == jax.tree.structure(problem)
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [leaf.shape for leaf in jax.tree.leaves(problem)]
    # Compiled from shapes alone, the program serves the numbers.
    compiled = OfProblem(jax.jit(draw), shapes).lower(t).compile()
    found = OfProblem(compiled.function, problem)(t)
    np.testing.assert_array_equal(found, program(t))
    assert compiled.memory_analysis().argument_size_in_bytes > 0
