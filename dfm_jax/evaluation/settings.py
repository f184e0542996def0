"""The settings of an evaluation, from a config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dfm_jax.config import Config
from dfm_jax.evaluation.generation import SamplingSettings
from dfm_jax.experiment import streams
from dfm_jax.experiment.problem import get_sampling_scheduler


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation: fields of a config's groups `eval` and `sampling`, and a few others.

    sample_batch_size and perplexity_batch_size are per device; batch_size, of the likelihood, is over all devices.
    corpora: the names of corpora whose likelihood is computed; "" is the run's own validation text. head: as
    `model.head`. config: the whole config as plain values, for the report. deterministic: as `training.deterministic`.
    records: whether the run trains on records: then samples answer the prompts of the validation text and end at their
    end of text. max_blocks: of each corpus; 0 is all.
    """

    sampling: SamplingSettings
    corpora: tuple[str, ...]
    judge: str
    head: str
    seed: int
    batch_size: int
    sample_batch_size: int
    perplexity_batch_size: int
    time_points: int
    num_samples: int
    num_training_samples: int
    config: Mapping[str, Any]
    deterministic: bool = False
    records: bool = False
    max_blocks: int = 0

    @classmethod
    def from_config(cls, config: Config, vocab_size: int) -> "EvaluationSettings":
        """The settings of a checked config, for `vocab_size` data tokens."""
        given, sampling = config.eval, config.sampling
        return cls(
            sampling=SamplingSettings(
                length=config.model.length,
                steps=sampling.steps or config.flow.sampling_steps,
                method=sampling.method,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                scheduler=get_sampling_scheduler(config, vocab_size),
                draft=sampling.draft,
                corrector=sampling.corrector,
                guidance=sampling.guidance,
            ),
            corpora=streams.corpora(config),
            judge=given.judge,
            head=config.model.head,
            seed=config.training.seed,
            batch_size=given.batch_size,
            sample_batch_size=given.sample_batch_size,
            perplexity_batch_size=given.perplexity_batch_size,
            time_points=given.time_points,
            num_samples=given.num_samples,
            num_training_samples=sampling.num,
            deterministic=config.training.deterministic,
            records=streams.trains_on_records(config),
            max_blocks=given.max_blocks,
            config=config.to_dict(),
        )
