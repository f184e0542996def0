"""What a training step takes of a processor's memory, as the compiler plans it."""

import math

import jax
import jax.numpy as jnp
import pytest

from configs import base
from dfm_jax.data import Batch
from dfm_jax.planning.hlo import text as hlo
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.training.loop import make_trainer

BATCH, LENGTH, VOCABULARY = 8, 256, 50257


@pytest.mark.slow
def test_the_step_of_the_benchmark_never_holds_its_logits():
    """That of benchmarks/step_vs_pytorch.py: half a gigabyte, where logits, softmax and gradient would be 1.2."""
    config = base.get_config()
    config.model.update(hidden_size=256, n_blocks=4, n_heads=4, length=LENGTH, compute_dtype="float32", remat="dots")
    config.training.update(batch_size=BATCH, unroll=1)
    trainer = make_trainer(config, VOCABULARY, make_mesh(MeshShape(), jax.devices()[:1]))
    state = jax.eval_shape(trainer.create)
    batch = Batch(jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32))
    compiled = trainer.step.lower(state, batch).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.5e9
    # The state is given away: the new one lies where the old one was.
    assert memory.alias_size_in_bytes > 0.999 * memory.argument_size_in_bytes
    largest = max(math.prod(shape.dims) for shape in hlo.parse_shapes(compiled.as_text()))
    assert largest < 0.5 * BATCH * LENGTH * VOCABULARY
