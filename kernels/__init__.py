"""Array in, array out: operations that are defined by plain jax and have faster implementations. Imports jax alone.

- `target`: the device that a program is traced for, and what it can run
- `attention`: full bidirectional attention and rotary embedding
- `vocab_head`: features to log-probabilities at a few ids, to a token, to a loss; never to logits
"""
