"""What a config means mathematically: path, source, objective and the network's view of time."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from dfm_jax import flow
from dfm_jax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Problem:
    """A flow matching problem on a vocabulary; hashable, so it may be a static argument of a jitted function."""

    path: flow.MixtureDiscreteProbPath | flow.GeneralPath
    source: flow.Source
    objective: flow.Objective
    parametrization: str
    time_input: str
    time_epsilon: float
    time_law: str
    time_sampling: str
    coupling: flow.Coupling

    @property
    def counts_masks(self) -> bool:
        """Whether the objective is the count form, which draws a number of masks in place of a time."""
        return isinstance(self.objective, flow.MaskedCount)

    @property
    def token_objective(self) -> flow.Objective:
        """The objective as a function of each position alone; the count form's L / n is then the row's weight."""
        if not self.counts_masks:
            return self.objective
        o = self.objective
        return flow.CrossEntropy(o.path, o.source, o.parametrization, o.suppress_mask, corrupted_only=True)

    @property
    def suppress(self) -> int | None:
        """The state that has probability 0 in all that samples or scores, if any."""
        return self.objective.suppress

    @property
    def evidence(self) -> Callable[[Array, Array | flow.Time], Array] | None:
        """(x_t, t) -> what leave-one-out logits gain at x_t, on a path that is not the mixture and carries nothing."""
        if not isinstance(self.path, flow.GeneralPath) or self.parametrization != "leave_one_out":
            return None
        if self.path.carries_over and self.source.mask_id is not None:
            return None
        path = self.path
        return lambda x_t, t: path.log_evidence(x_t, t, self.source)

    def network_time(self, t: Array | flow.Time) -> Array:
        """(B,) float32 time that the network is told: t, or kappa_t with `model.time_input='kappa'`."""
        time = flow.as_time(t)
        return (self.path.scheduler(time).alpha_t if self.time_input == "kappa" else time.t).astype(jnp.float32)


def get_scheduler(config: ConfigDict, name: str = "") -> flow.Scheduler:
    """The training scheduler, or the one called `name` with the same exponent."""
    return flow.get_scheduler(name or config.flow.scheduler_type, exponent=config.flow.exponent)


def get_path(
    config: ConfigDict, scheduler: flow.Scheduler, vocab_size: int
) -> flow.MixtureDiscreteProbPath | flow.GeneralPath:
    """The path of a config on `vocab_size` data tokens."""
    if config.flow.path == "three_term":
        return flow.ThreeTermProbPath(scheduler, vocab_size, config.flow.noise)
    return flow.MixtureDiscreteProbPath(scheduler)


def get_problem(config: ConfigDict, vocab_size: int) -> Problem:
    """The problem of a checked config on `vocab_size` data tokens."""
    path = get_path(config, get_scheduler(config), vocab_size)
    source = flow.get_source(config.flow.source_distribution, vocab_size)
    objective = flow.get_objective(
        config.flow.loss_function,
        path=path,
        source=source,
        parametrization=config.model.parametrization,
        suppress_mask=config.model.suppress_mask_logit and source.mask_id is not None,
    )
    return Problem(
        path=path,
        source=source,
        objective=objective,
        parametrization=config.model.parametrization,
        time_input=config.model.time_input,
        time_epsilon=config.flow.time_epsilon,
        time_law=config.flow.time_law,
        time_sampling=config.flow.time_sampling,
        coupling=flow.get_coupling(config.flow.coupling),
    )


def get_model_config(config: ConfigDict, num_states: int, platform: str | None = None) -> TransformerConfig:
    """The denoiser's architecture for `num_states` token states on `platform` (the default backend if None)."""
    platform = platform or jax.default_backend()
    model = config.model
    compute_dtype = model.compute_dtype
    if compute_dtype == "auto":
        # A CPU multiplies bfloat16 slower than float32.
        compute_dtype = "float32" if platform == "cpu" else "bfloat16"
    return TransformerConfig(
        vocab_size=num_states,
        hidden_size=model.hidden_size,
        cond_dim=model.cond_dim,
        length=model.length,
        n_blocks=model.n_blocks,
        n_heads=model.n_heads,
        dropout=model.dropout,
        mlp_ratio=model.mlp_ratio,
        attention=model.attention,
        remat=model.remat,
        compute_dtype=compute_dtype,
        residual_dtype=model.residual_dtype,
        time_scale=model.time_scale,
        time_conditioning=model.time_conditioning,
        qk_norm=model.qk_norm,
        tie_embeddings=model.tie_embeddings,
    )
