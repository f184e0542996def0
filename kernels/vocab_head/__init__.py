"""The vocabulary head: features to log-probabilities at a few ids, to a token, to a loss; never to logits.

- `types`: `Head`, `Query` (with its `Reduction`), `Answer`, `Drawn`; nothing of Pallas
- `operations`: `log_probs`, `log_probs_of_each` (of several queries), `summed_loss`, `sample`, `argmax`, `draw`;
  `why_not` says what an implementation needs
- `dense`: the definition, which stores the logits; `reductions`: the sums over the vocabulary
- `blocks`: one block of rows at a time; `fused_loss` and `draws` are its summed loss and its draws
- `pallas`: our own kernels; `pallas_tiles` is their arithmetic, `pallas_gpu` drives it on a GPU
- `shards`, `arithmetic`: what these share
"""

from .dense import answer_from_logits
from .dense import look as look_at_logits
from .operations import IMPLEMENTATIONS, argmax, draw, log_probs, log_probs_of_each, sample, summed_loss, why_not
from .reductions import one_minus_y_cot_y
from .types import Answer, Drawn, Head, Query, Reduction, Tiles

__all__ = [
    "IMPLEMENTATIONS",
    "Answer",
    "Drawn",
    "Head",
    "Query",
    "Reduction",
    "Tiles",
    "answer_from_logits",
    "argmax",
    "draw",
    "log_probs",
    "log_probs_of_each",
    "look_at_logits",
    "one_minus_y_cot_y",
    "sample",
    "summed_loss",
    "why_not",
]
