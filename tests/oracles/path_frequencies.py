"""Frequencies of a compiled sampler against an enumerated law, judged by a chi-square."""

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import flow

SEQUENCES = 10_000


def check_frequencies(path, source, step, tables, law) -> None:
    """`tables`: posterior logits (S**L, L, S) at j / N, j < N; `law` (S**L,) after N steps."""
    logits = jnp.asarray(np.stack(tables), jnp.float32)
    steps, states, length = len(tables), source.num_states, tables[0].shape[1]
    weights = states ** np.arange(length - 1, -1, -1)

    def model(x, t):
        row = (x * jnp.asarray(weights, jnp.int32)[None]).sum(-1)
        return logits[jnp.rint(t * steps).astype(jnp.int32), row]

    solver = flow.MixtureDiscreteSolver(model, path, source, step=step, group_size=1 << 13)
    x_init = source.sample(jax.random.key(1), (SEQUENCES, length))
    x = np.asarray(solver.sample(jax.random.key(2), x_init, steps=steps))
    counts = np.bincount(np.ravel_multi_index(x.T, (states,) * length), minlength=states**length)
    expected = law * SEQUENCES
    assert not counts[expected < 1e-6].any()
    rare = expected < 8
    seen, wanted = (np.append(a[~rare], a[rare].sum()) for a in (counts, expected))
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    freedom = len(seen) - 1
    excess = (((seen - wanted) ** 2 / wanted).sum() - freedom) / np.sqrt(2 * freedom)
    assert excess < 4.5
