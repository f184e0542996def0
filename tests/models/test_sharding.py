"""Where arrays live: the mesh's shape, and the rules on the published model's own shapes."""

import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from configs import base
from dfm_jax import optim
from dfm_jax.experiment import problem
from dfm_jax.models import sharding
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.mesh import AXES, MeshShape, axis_size, check_mesh
from dfm_jax.training import state

PUBLISHED = base.get_config()


def abstract_state():
    model = problem.get_model_config(PUBLISHED, 50257)
    tx = optim.from_config(PUBLISHED.optim)
    return jax.eval_shape(lambda key: state.create_state(key, model, tx, ema=True), jax.random.key(0))


def mesh(*sizes: int) -> AbstractMesh:
    return AbstractMesh(sizes, AXES)


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 1, 4), (2, 2, 2)])
def test_every_large_leaf_of_the_published_model_is_split_evenly(shape):
    parts = mesh(*shape)
    whole = state_bytes = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state()):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec, note = sharding.leaf_spec(name, leaf.shape, parts)
        assert note is None, note
        split = 1
        for axis in spec:
            split *= 1 if axis is None else axis_size(parts, axis)
        state_bytes += leaf.size
        whole += leaf.size / split
        if leaf.size >= sharding.MIN_SIZE and parts.shape["tensor"] == 1:
            assert split == parts.shape["fsdp"], name
    # Tensor parallelism alone leaves modulation and norms whole.
    assert whole / state_bytes < (1.1 if parts.shape["tensor"] == 1 else 1.4) / (
        parts.shape["fsdp"] * parts.shape["tensor"]
    )


def leaves(specs):
    return jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))


def test_moments_and_average_follow_their_parameter():
    specs, _ = sharding.state_specs(abstract_state(), mesh(1, 4, 2))
    assert specs.model.blocks.qkv.kernel.get_value() == P(None, "fsdp", None, "tensor")
    moments = optim.get_moments(specs.opt_state)
    for tree in (moments.mu, moments.nu, specs.ema):
        assert leaves(tree) == leaves(specs.model)


def test_a_rule_that_does_not_divide_is_told_and_leaves_the_axis_whole():
    spec, note = sharding.leaf_spec("model.blocks.mlp_up.kernel.value", (4, 255, 1024), mesh(1, 2, 2))
    assert spec == P(None, None, "tensor")
    assert note is not None and "fsdp (2 does not divide 255)" in note


@pytest.mark.parametrize(
    "axes, devices, expected",
    [((-1, 1, 1), 8, (8, 1, 1)), ((2, -1, 2), 8, (2, 2, 2)), ((1, 1, 1), 1, (1, 1, 1)), ((1, 4, -1), 4, (1, 4, 1))],
)
def test_the_free_axis_takes_what_is_left(axes, devices, expected):
    assert MeshShape(*axes).resolve(devices) == MeshShape(*expected)


@pytest.mark.parametrize("axes, devices", [((3, -1, 1), 8), ((2, 2, 1), 8), ((16, 1, 1), 8)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(axes, devices):
    with pytest.raises(UsageError, match=r"config.mesh = .*expected"):
        MeshShape(*axes).resolve(devices)


def test_batch_and_heads_have_to_be_divided():
    fits = {"batch_size": 16, "grad_accum": 2, "n_heads": 4}
    check_mesh(mesh(4, 2, 2), **fits)
    with pytest.raises(UsageError, match=r"batch_size = 24: expected multiples of 16"):
        check_mesh(mesh(4, 2, 2), **(fits | {"batch_size": 24}))
    with pytest.raises(UsageError, match=r"mesh.tensor = 2: expected divisors of model.n_heads=3"):
        check_mesh(mesh(4, 2, 2), **(fits | {"n_heads": 3}))
