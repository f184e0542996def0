"""What a loss asks the vocabulary head, and what the head answers. A loss never sees logits.

The vocabulary head is the network's last layer, from features to the S states. Every loss needs log-probabilities at a
few ids per position, and at most one weighted sum over the vocabulary. So a loss sends a query and gets an answer, and
no array of shape (B, L, S) exists. The types come from `kernels.vocab_head`; the losses use these names:

- `HeadQuery`: `ids` (B, L, K) asks for K log-probabilities per position. `shift` (B, L) is added to the logit at
  `shift_ids` (B, L). The state `suppress` gets the logit -inf. `reduction` asks for the sum.
- `VocabReduction`: one weighted sum over the S states, of a function of their probabilities
- `HeadAnswer`: `at_ids` (B, L, K) log-probabilities in nats; `reduced` (B, L), the sum
- `answer_from_logits`: the definition of the answer, from logits (B, L, S)
- `one_minus_y_cot_y`: e_v = 1 - y cot y at y = sigma W_v. On the kinetic-optimal path token v jumps at the rate
  (2 / sigma) (1 - e_v).
- `look_at_logits`: the definition of what a sampler asks about a drawn token, from logits (N, S)
"""

from dfm_jax.kernels import vocab_head

HeadQuery = vocab_head.Query
HeadAnswer = vocab_head.Answer
VocabReduction = vocab_head.Reduction
answer_from_logits = vocab_head.answer_from_logits
one_minus_y_cot_y = vocab_head.one_minus_y_cot_y
look_at_logits = vocab_head.look_at_logits
