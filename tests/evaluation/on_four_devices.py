"""Run by test_on_four_devices.py in a process of its own: the same samples and figures on any mesh."""

import os

# Threads for every collective that simulated devices may be in at once: they wait in them, on as many threads as cores.
os.environ["NPROC"] = "16"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from flax import nnx
from toy_network import make_problem

from dfm_jax import flow
from dfm_jax.evaluation.generation import SamplingSettings, generate
from dfm_jax.evaluation.judge.gpt2 import GPT2, GPT2Config
from dfm_jax.evaluation.judge.perplexity import Judge
from dfm_jax.evaluation.likelihood import estimate_likelihood
from dfm_jax.models import sharding
from dfm_jax.models.transformer import Transformer, TransformerConfig
from dfm_jax.runtime.mesh import MeshShape, make_mesh

V, L = 11, 12
problem = make_problem(flow.MaskSource(V), parametrization="leave_one_out")
config = TransformerConfig(V + 1, 16, 8, L, n_blocks=1, n_heads=2)
model = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()
rng = np.random.default_rng(1)
model = jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape, np.float32), model)
tokens = rng.integers(0, V, (8, L), np.int32)
weights = np.asarray([1, 1, 1, 1, 1, 1, 0, 0], np.float32)
judge = GPT2(GPT2Config(V + 1, L, 8, 1, 1), rngs=nnx.Rngs(0))


class Letters:
    name, vocab_size, eos_id = "letters", V, 0

    def encode_batch(self, texts):
        return [[ord(c) - 97 for c in text] for text in texts]

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


found = []
for shape in (None, (2, 2, 1), (2, 1, 2)):
    mesh = None if shape is None else make_mesh(MeshShape(*shape))
    placed = model
    if mesh is not None:
        placed = jax.device_put(model, sharding.state_shardings(model, mesh)[0])
    samples = generate(placed, problem, SamplingSettings(L, 6), 6, batch_size=4, mesh=mesh)
    # Six sequences have rows of their own; of two the devices share the inputs.
    for num in (6, 2):
        drafted = generate(placed, problem, SamplingSettings(L, 6, draft=3), num, batch_size=4, mesh=mesh)
        np.testing.assert_array_equal(drafted, samples[:num], err_msg=f"{num} samples with drafts on {shape}")
    results = estimate_likelihood(placed, problem, [(tokens, weights)], key=jax.random.key(0), time_points=4, mesh=mesh)
    judged = Judge(judge, Letters(), batch_size=4, mesh=mesh)(samples, Letters())
    figures = [r.nats_per_token for r in results.values()] + [judged.ppl_mean_of_exp, judged.ppl_token_mean]
    found.append((samples, figures))
    np.testing.assert_array_equal(found[0][0], samples, err_msg=f"samples on {shape}")
    np.testing.assert_allclose(figures, found[0][1], rtol=1e-5, err_msg=f"figures on {shape}")
print("the same on every mesh")
