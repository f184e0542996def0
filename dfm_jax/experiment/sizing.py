"""Sizes and steps of a run from its text and its device: the rule of docs/own_text.md, for fields that are 'auto'.

speed        operations a second that the device is taken to do: 30e9 a core of a processor, a quarter of a card's
             peak, 20e12 for a card that is not known
budget       speed times 5 minutes on a processor, 60 on other devices
parameters   sqrt(budget / 96), which sees 16 tokens for each, and not more than the text has tokens
tokens       what the budget lets a network of that size see, and not more than 100 times the text
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dfm_jax import config as configs
from dfm_jax.config import Config
from dfm_jax.data import vocabulary_size
from dfm_jax.models import flops
from dfm_jax.runtime import peaks

CORE, CARD, SHARE_OF_PEAK = 30e9, 20e12, 0.25  # operations a second
MINUTES = {"cpu": 5.0}
OTHER_MINUTES = 60.0
SEEN_PER_PARAMETER = 16
EPOCHS = 100
STEPS = 4000
# Width and blocks; heads of 32 to 64.
SIZES = ((32, 2), (64, 2), (96, 2), (128, 2), (128, 4), (192, 4), (256, 4), (256, 6), (384, 6), (512, 8), (768, 12))
LENGTHS = {"cpu": 128}
OTHER_LENGTH = 512
MOST_TOKENS = {"cpu": 2**13}  # of a batch
OTHER_MOST_TOKENS = 2**16  # on each device
RATE, RATES = 3e-3, {"muon": 1e-2}  # up to a width of 128
SHARE_OF_EVALUATION = 0.15  # of the operations of training, for the likelihood at the end


@dataclasses.dataclass(frozen=True)
class Text:
    """Tokens to train on and to validate on."""

    tokens: int
    valid: int


@dataclasses.dataclass(frozen=True)
class Device:
    """platform: 'cpu', 'gpu', ... kind: as jax names it. count: devices; cores: of the machine's processor."""

    platform: str
    kind: str
    count: int
    cores: int

    @property
    def speed(self) -> float:
        """Operations a second, of all devices."""
        if self.platform == "cpu":
            return CORE * self.cores
        peak = peaks.peak_of(self.kind)
        return self.count * (CARD if peak is None else SHARE_OF_PEAK * peak)

    def __str__(self) -> str:
        if self.platform == "cpu":
            return f"{self.cores} core{'s' * (self.cores > 1)}"
        return f"{self.count} x {self.kind}"


class Found(NamedTuple):
    """field -> value, and why, a line each."""

    values: dict[str, Any]
    reasons: tuple[str, ...]


# What a check of fields is made with before the text has been read.
NOMINAL = Text(1_000_000, 50_000), Device("cpu", "cpu", 1, 2)


def settle(config: Config, text: Text, device: Device) -> tuple[Config, tuple[str, ...]]:
    """The config with values for its fields of `training.auto`, and the reasons. The others stay as they are."""
    found = find(config, text, device)
    return configs.replace(config, {**found.values, "training.auto": ()}), found.reasons


def find(config: Config, text: Text, device: Device) -> Found:
    """Values of the fields of `training.auto`, which do not depend on their present ones."""
    left, values, reasons = set(config.training.auto), dict[str, Any](), list[str]()

    def choose(fields: Mapping[str, Callable[[], Any]], why: Callable[[], str]) -> None:
        """Sets those of the fields that are left, in their order, and gives the reason."""
        chosen = {}
        for name, value in fields.items():
            if name in left:
                chosen[name] = values[name] = value()
        if chosen:
            reasons.append(f"{', '.join(f'{name} = {_shown(value)}' for name, value in chosen.items())}: {why()}")

    def now(name: str) -> Any:
        return values.get(name, config[name])

    minutes = MINUTES.get(device.platform, OTHER_MINUTES)
    budget = device.speed * minutes * 60
    states = vocabulary_size(config.tokenizer.name) + (config.flow.source_distribution == "mask")
    wished = LENGTHS.get(device.platform, OTHER_LENGTH)
    longest = max(8, min(text.tokens // 64, text.valid))
    choose(
        {"model.length": lambda: _power(min(wished, longest))},
        lambda: f"{wished} on this device, and no more than a 64th of the text and its validation part",
    )
    most = min(math.sqrt(budget / (6 * SEEN_PER_PARAMETER)), max(text.tokens, 0))
    fitting = [size for size in SIZES if 12 * size[1] * size[0] ** 2 <= most] or [SIZES[0]]
    width, blocks = fitting[-1]
    if "model.hidden_size" not in left and "model.n_blocks" in left:
        blocks = max(1, min(24, round(most / (12 * config.model.hidden_size**2))))
    if "model.hidden_size" in left and "model.n_blocks" not in left:
        least = 32 if "model.n_heads" in left else 2 * config.model.n_heads
        width = max(least, round(math.sqrt(most / 12 / config.model.n_blocks)) // least * least)
    elif "model.hidden_size" in left and "model.n_heads" not in left:
        least = 2 * config.model.n_heads
        width = max(least, width // least * least)
    choose(
        {
            "model.hidden_size": lambda: width,
            "model.n_blocks": lambda: blocks,
            "model.n_heads": lambda: _heads(now("model.hidden_size")),
        },
        lambda: (
            f"about {_count(most)} parameters, which {device} can show {SEEN_PER_PARAMETER} tokens each in "
            f"{minutes:g} minutes, and no more than the text has tokens ({_count(text.tokens)})"
        ),
    )
    sized = configs.replace(config, {**{name: now(name) for name in ("model.length", *_SHAPE)}, "training.auto": ()})
    per_token = 3 * flops.forward_per_token(sized, states)
    # A run needs tokens to see, however small the budget or the text.
    seen = max(min(budget / per_token, EPOCHS * text.tokens), now("model.length"))
    most_tokens = MOST_TOKENS.get(device.platform, OTHER_MOST_TOKENS) * (
        1 if device.platform == "cpu" else device.count
    )
    rows = max(1, min(seen / STEPS, most_tokens) / now("model.length"))
    step = device.count * config.training.grad_accum
    choose(
        {"training.batch_size": lambda: max(8, _power(rows)) if step == 1 else -(-max(8, _power(rows)) // step) * step},
        lambda: f"for about {STEPS:,} updates, within {_count(most_tokens)} tokens",
    )
    per_update = now("training.batch_size") * now("model.length")
    choose(
        {"optim.n_iters": lambda: max(20, int(round(seen / per_update, -2 if seen > 1000 * per_update else -1)))},
        lambda: (
            f"{_count(now('optim.n_iters') * per_update)} tokens, "
            f"{now('optim.n_iters') * per_update / max(text.tokens, 1):,.1f} times the text (at most {EPOCHS}); "
            f"about {minutes:g} minutes of {device} at {device.speed:.1e} operations a second, or less"
        ),
    )
    steps = now("optim.n_iters")
    width, rate = now("model.hidden_size"), RATES.get(config.optim.name, RATE)
    choose(
        {
            "optim.lr": lambda: float(f"{rate * min(1.0, (128 / width) ** 0.75):.1g}"),
            "optim.warmup": lambda: steps // 20,
            "model.dropout": lambda: 0.1 if steps * per_update > 10 * text.tokens else 0.0,
        },
        lambda: "the rate falls with the width, a 20th of the steps warms up, dropout is for more than 10 epochs",
    )
    choose(
        {
            "training.eval_freq": lambda: max(1, steps // 10),
            "training.snapshot": lambda: max(1, steps // 10),
            "logging.log_freq": lambda: max(1, steps // 50),
        },
        lambda: "ten points of the validation curve, fifty of the training curve",
    )
    points = config.eval.time_points * now("model.length")
    shown = 3 * steps * per_update * SHARE_OF_EVALUATION
    choose(
        {"eval.max_blocks": lambda: max(64, int(shown / points))},
        lambda: f"the likelihood at the end takes no more than {SHARE_OF_EVALUATION:.0%} of the operations of training",
    )
    return Found(values, tuple(reasons))


_SHAPE = ("model.hidden_size", "model.n_blocks", "model.n_heads")


def _heads(width: int) -> int:
    """The number of heads nearest to width / 48 of those that divide the width into even parts; 1 if none does."""
    return min(
        (n for n in range(1, width // 2 + 1) if width % (2 * n) == 0), key=lambda n: abs(n - width / 48), default=1
    )


def _power(number: float) -> int:
    """The largest power of 2 that is not above `number`; 1 at least."""
    return 2 ** max(0, int(math.log2(max(number, 1))))


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _count(number: float) -> str:
    for size, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:.0f}"
