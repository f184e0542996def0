"""The plan of a run, said before its first step, and its times, once some steps have been timed."""

import dataclasses
from collections.abc import Mapping

import jax

from dfm_jax.config import Config
from dfm_jax.data import Mixture, RecordStream, TokenStream
from dfm_jax.models import flops
from dfm_jax.run import sizes
from dfm_jax.runtime.terminal import clock

FORWARD = 1 / 3  # of the operations of a training step, which are those of three forward passes


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do.

    train, valid: its texts, as tokens. blocks: of each text of the evaluation at the end, by what the report calls it,
    the number that is looked at. evaluates: whether that evaluation is still to come. done: steps that are made.
    """

    config: Config
    mesh: jax.sharding.Mesh
    train: TokenStream | Mixture
    valid: TokenStream
    blocks: Mapping[str, int]
    evaluates: bool
    num_states: int
    done: int = 0

    def lines(self) -> list[str]:
        """What is said before the first step."""
        config = self.config
        if isinstance(self.train, Mixture):
            lines = [f"data: {line}" for line in mixed(self.train, config, self.done)]
        else:
            first, second = self._text(self.train)
            lines = [f"data: {first}", f"      {second}"]
        lines.append(f"validation: {self._validation()}")
        if memory := self._memory():
            lines.append(memory)
        if hours := self._hours():
            lines.append(hours)
        lines.append(f"on the way: {self._on_the_way()}")
        if at_the_end := self._at_the_end():
            lines.append(f"at the end: {at_the_end}")
        return lines

    def times(self, seconds_per_step: float) -> str:
        """How long each part takes, by the operations of each and the time that a step took."""
        config = self.config
        left = config.optim.n_iters - self.done
        rate = config.training.batch_size * config.model.length / seconds_per_step  # tokens trained on a second
        per_token = FORWARD / rate
        parts = {"training": left * seconds_per_step, "its evaluations": self._losses(left) * per_token}
        if self.evaluates and config.eval.elbo:
            blocks = sum(self.blocks.values())
            parts["the likelihood at the end"] = blocks * config.model.length * config.eval.time_points * per_token
        if samples := self._samples(left):
            parts["samples"] = samples * per_token
        total = sum(parts.values())
        shown = ", ".join(f"{clock(value)} {name}" for name, value in parts.items() if value >= 0.5)
        return f"time: about {clock(total)} in all ({shown}), by {seconds_per_step:.3g} seconds a step"

    def _text(self, train: TokenStream) -> tuple[str, str]:
        config, made = self.config, train.manifest
        epoch = train.num_blocks(config.model.length) / config.training.batch_size
        return (
            described(train, config),
            f"{made.num_documents:,} documents, {made.num_bytes / max(made.num_tokens, 1):.2f} bytes a token; "
            f"{config.optim.n_iters:,} steps of {config.training.batch_size:,} x {config.model.length:,} tokens see it "
            f"{config.optim.n_iters / epoch:,.1f} times",
        )

    def _validation(self) -> str:
        config = self.config
        looked_at = self._loss_blocks()
        held_out = not config.data.valid
        what = f"held out of {config.data.train} ({config.data.held_out:.0%})" if held_out else config.data.valid
        return f"{what}, {self.valid.num_tokens:,} tokens, {looked_at:,} blocks looked at"

    def _memory(self) -> str:
        """The least that training takes; nothing where that is too little to matter."""
        need = max(sizes.of_training(self.config, self.mesh), key=lambda need: need.size)
        limit, where = sizes.there_is(self.mesh)
        if limit is None or need.size < 2**28:
            return ""
        return f"memory: at least {need.size / 2**30:.2g} GiB a device, of {limit / 2**30:.2g} {where}"

    def _hours(self) -> str:
        """How long training takes on a card whose peak is known, before it is timed."""
        peak = flops.peak_per_second(self.mesh)
        if peak is None:
            return ""
        steps = self.config.optim.n_iters - self.done
        seconds = steps * flops.training_step(self.config, self.num_states) / peak
        shares = {share: clock(seconds / share) for share in (0.25, 0.40, 0.55)}
        return "training: " + ", ".join(f"{time} at {share:.0%}" for share, time in shares.items()) + " of the peak"

    def _on_the_way(self) -> str:
        config, training = self.config, self.config.training
        parts = [f"the loss of the validation text every {training.eval_freq:,} steps" if training.eval_freq else ""]
        parts += [f"a checkpoint every {training.snapshot:,}" if training.snapshot else "a checkpoint at the end"]
        if training.perplexity_freq and training.perplexity_freq <= config.optim.n_iters:
            parts += [f"{config.sampling.num:,} samples every {training.perplexity_freq:,}"]
        if config.checkpoint.keep_best:
            parts += ["the best checkpoint is kept and used"]
        return ", ".join(filter(None, parts))

    def _at_the_end(self) -> str:
        config, parts = self.config, list[str]()
        if self.evaluates and config.eval.elbo:
            points = f"blocks at {config.eval.time_points:,} times"
            parts += [f"the likelihood of {name}, {blocks:,} {points}" for name, blocks in self.blocks.items()]
        if self.evaluates and config.eval.perplexity:
            steps = config.sampling.steps or config.flow.sampling_steps
            judged = f", judged by {config.eval.judge}" if config.eval.judge else ""
            parts += [f"{config.eval.num_samples:,} samples of {steps:,} steps{judged}"]
        return "; ".join(parts)

    def _loss_blocks(self) -> int:
        blocks = self.valid.num_blocks(self.config.model.length)
        return min(blocks, self.config.eval.max_blocks or blocks)

    def _losses(self, steps: int) -> int:
        """Tokens that the evaluations of the loss pass through the network."""
        every, last = self.config.training.eval_freq, self.config.optim.n_iters
        times = (last // every - (last - steps) // every if every else 0) + bool(steps and (not every or last % every))
        return times * self._loss_blocks() * self.config.model.length

    def _samples(self, steps: int) -> int:
        """Tokens that sampling passes through the network."""
        config = self.config
        every, last = config.training.perplexity_freq, config.optim.n_iters
        drawn = (last // every - (last - steps) // every) * config.sampling.num if every else 0
        drawn += config.eval.num_samples if self.evaluates and config.eval.perplexity else 0
        return drawn * (config.sampling.steps or config.flow.sampling_steps) * config.model.length


def described(stream: TokenStream, config: Config) -> str:
    """One corpus: its name, its tokens, the updates of an epoch."""
    epoch, records = stream.num_blocks(config.model.length), ""
    if isinstance(stream, RecordStream):
        records = f"{stream.num_records:,} records, "
    return (
        f"{stream.manifest.corpus}, {records}{stream.num_tokens:,} tokens of {stream.manifest.tokenizer}, "
        f"{epoch / config.training.batch_size:,.1f} steps an epoch"
    )


def mixed(mixture: Mixture, config: Config, step: int) -> list[str]:
    """A line for each corpus of a mixture: its share of the blocks, its epochs so far and at the end of the run."""
    training = {"length": config.model.length, "batch_size": config.training.batch_size, "seed": config.training.seed}
    now, end = (mixture.epochs(at, **training) for at in (step, config.optim.n_iters))
    weights = next((w for start, w in reversed(mixture.changes) if start <= step), mixture.weights)
    return [
        f"{float(weight / sum(weights)):.2%} of the blocks from {described(stream, config)}; "
        f"{so_far:,.2f} epochs so far, {in_all:,.2f} at step {config.optim.n_iters:,}"
        for weight, stream, so_far, in_all in zip(weights, mixture.streams, now, end, strict=True)
    ]
