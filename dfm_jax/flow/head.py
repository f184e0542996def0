"""What a loss asks of the vocabulary head, and what it gets: a loss never sees logits.

Every loss needs log-probabilities at a few ids per position, and at most one weighted reduction over the vocabulary.
The types are those of `kernels.vocab_head`, under the names that they have among the losses:

- `HeadQuery`: ids (B, L, K); `shift` (B, L) is added to the logit at `shift_ids` (B, L); the state `suppress` gets the
  logit -inf; `reduction`
- `VocabReduction`: one sum over the S states of the probabilities of a position
- `HeadAnswer`: `at_ids` (B, L, K) log-probabilities in nats, `reduced` (B, L)
- `answer_from_logits`: the definition, from logits (B, L, S)
- `one_minus_y_cot_y`: how much slower than 1/sigma a kinetic-optimal token is, at y = sigma W
"""

from dfm_jax.kernels import vocab_head

HeadQuery = vocab_head.Query
HeadAnswer = vocab_head.Answer
VocabReduction = vocab_head.Reduction
answer_from_logits = vocab_head.answer_from_logits
one_minus_y_cot_y = vocab_head.one_minus_y_cot_y
