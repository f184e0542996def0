"""What the n-gram judge says of texts whose quality is known, so that a figure of samples has something beside it."""

import numpy as np

from benchmarks.runs_compared import Judge, Text, score

SHARES = (0.02, 0.05, 0.1, 0.2)


def draw(model: Judge, count: int, length: int, seed: int = 0) -> np.ndarray:
    """(count, length) int32 sequences of an n-gram model, id by id."""
    generator = np.random.default_rng(seed)
    drawn = np.zeros((count, length), np.int32)
    for row in drawn:
        for i in range(length):
            context = row[max(0, i - model.order + 1) : i].tolist()
            row[i] = np.searchsorted(np.cumsum(model.law(context)), generator.random())
    return np.minimum(drawn, model.vocab_size - 1)  # where rounding left the sum below the uniform


def scale(text: Text) -> dict[str, dict[str, float]]:
    """What the text is -> its score, and for an n-gram model `own`, its nats per id of the held-out blocks.

    Samples of n-gram models, as many as there are held-out blocks; held-out blocks with a share of their ids drawn
    anew from the frequencies of the training text; held-out blocks.
    """
    judge, blocks = text.judge, text.held_out
    rows = {}
    for order in range(1, judge.order + 1):
        model = judge.lower(order)
        own = float(np.mean([model(row[judge.order - order :].tolist()) for row in blocks]))  # the same ids for each
        rows[f"samples of a {order}-gram model"] = {**score(judge, draw(model, *blocks.shape)), "own": own}
    generator = np.random.default_rng(0)
    for share in SHARES:
        fresh = generator.choice(judge.vocab_size, size=blocks.shape, p=judge.lower(1).law([]))
        replaced = np.where(generator.random(blocks.shape) < share, fresh, blocks)
        rows[f"real text, {share:.0%} of its bytes drawn anew"] = score(judge, replaced)
    rows["real text"] = score(judge, blocks)
    return rows
