"""The mathematics of discrete flow matching: pure functions of arrays and frozen dataclasses (docs/mathematics.md)."""

# ruff: noqa: F401
from dfm_jax.flow.beta import ConstantSpeedBeta, PowerBeta
from dfm_jax.flow.couplings import (
    ConditionalCoupling,
    CoupledPair,
    Coupling,
    IndependentCoupling,
    conditional_coupling,
    get_coupling,
    mask_subset,
    mask_uniform_subset,
    uncharged,
)
from dfm_jax.flow.denoiser import Denoiser, from_logits
from dfm_jax.flow.events import FirstHitting, Thinning
from dfm_jax.flow.flux import flux
from dfm_jax.flow.grids import TimeGrid, adaptive_grid, make_grid
from dfm_jax.flow.head import HeadAnswer, HeadQuery, VocabReduction, answer_from_logits
from dfm_jax.flow.losses import (
    cross_entropy,
    generalized_kl,
    loss_from_logits,
    masked_elbo,
    time_reversal_bound,
    to_posterior,
)
from dfm_jax.flow.metric import MetricProbPath, MetricVelocity
from dfm_jax.flow.objectives import (
    OBJECTIVES,
    CrossEntropy,
    GeneralizedKL,
    MaskedCount,
    MaskedELBO,
    Objective,
    TimeReversal,
    get_objective,
)
from dfm_jax.flow.path_base import GeneralPath
from dfm_jax.flow.paths import MixtureDiscreteProbPath, PathSample
from dfm_jax.flow.scheduler_base import HostSchedule, Scheduler, SchedulerOutput
from dfm_jax.flow.schedulers import SCHEDULERS, WITH_EXPONENT, get_scheduler
from dfm_jax.flow.schedulers_noise import GeometricScheduler, LogLinearScheduler
from dfm_jax.flow.schedulers_polynomial import (
    CondOTScheduler,
    CubicScheduler,
    OneMinusPowerScheduler,
    PolynomialConvexScheduler,
)
from dfm_jax.flow.schedulers_trigonometric import (
    CosineMD4Scheduler,
    KineticOptimalUniformScheduler,
    SineScheduler,
    SineSquaredScheduler,
)
from dfm_jax.flow.solvers import MixtureDiscreteEulerSolver, MixtureDiscreteSolver, get_step
from dfm_jax.flow.sources import CategoricalSource, MaskSource, Source, UniformSource, get_source
from dfm_jax.flow.steps import Corrector, Euler, Exact, TwoStage
from dfm_jax.flow.steps_stochastic import Ancestral, DivFreeEuler, Multiflow, Remask
from dfm_jax.flow.three_term import ThreeTermForwardVelocity, ThreeTermProbPath, ThreeTermReversalVelocity
from dfm_jax.flow.time import Time, as_time
from dfm_jax.flow.time_laws import sample_times, unit_samples
from dfm_jax.flow.token_schedules import (
    GenMD4ProbPath,
    KineticOptimalProbPath,
    TokenForwardVelocity,
    TokenSchedulePath,
)
from dfm_jax.flow.velocities import (
    CorrectorVelocity,
    DetailedBalanceVelocity,
    ForwardVelocity,
    TimeReversalVelocity,
    Velocity,
    bound_of,
    divergence_free,
)
