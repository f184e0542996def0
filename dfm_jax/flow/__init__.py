"""The mathematics of discrete flow matching: pure functions of arrays and frozen dataclasses (docs/mathematics.md).

The modules in order: `tree` (frozen objects as pytrees), `random`, `time`, `tokens`, `categorical` (draws),
`schedulers`, `sources`, `couplings`, `head` (what a loss asks of the vocabulary head), `prediction` (what logits mean),
`losses`, `samplers`, `paths`. Each imports only modules that come before it in this list.
"""

# ruff: noqa: F401
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
from dfm_jax.flow.head import HeadAnswer, HeadQuery, VocabReduction, answer_from_logits
from dfm_jax.flow.losses.dense import (
    cross_entropy,
    generalized_kl,
    loss_from_logits,
    masked_elbo,
    time_reversal_bound,
    to_posterior,
)
from dfm_jax.flow.losses.mixture import (
    OBJECTIVES,
    CrossEntropy,
    GeneralizedKL,
    MaskedCount,
    MaskedELBO,
    TimeReversal,
)
from dfm_jax.flow.losses.objective import Objective, get_objective
from dfm_jax.flow.paths.base import GeneralPath, Path, PathSample, clock, find_objective, find_step
from dfm_jax.flow.paths.metric.beta import ConstantSpeedBeta, PowerBeta
from dfm_jax.flow.paths.metric.path import MetricProbPath, MetricVelocity
from dfm_jax.flow.paths.mixture.path import MixtureDiscreteProbPath
from dfm_jax.flow.paths.mixture.velocities import (
    CorrectorVelocity,
    DetailedBalanceVelocity,
    ForwardVelocity,
    TimeReversalVelocity,
    bound_of,
    divergence_free,
)
from dfm_jax.flow.paths.three_term.path import (
    ThreeTermForwardVelocity,
    ThreeTermProbPath,
    ThreeTermReversalVelocity,
)
from dfm_jax.flow.paths.token_schedules.base import TokenForwardVelocity, TokenSchedulePath
from dfm_jax.flow.paths.token_schedules.genmd4 import GenMD4ProbPath
from dfm_jax.flow.paths.token_schedules.kinetic_optimal import KineticOptimalProbPath
from dfm_jax.flow.paths.velocity import Velocity, flux
from dfm_jax.flow.prediction import Prediction
from dfm_jax.flow.samplers.correctors import Corrector
from dfm_jax.flow.samplers.correctors.settings import ForwardBackward, Gibbs, Resample
from dfm_jax.flow.samplers.denoiser import Answer, Denoiser, Needs, from_logits
from dfm_jax.flow.samplers.events import FirstHitting, Thinning
from dfm_jax.flow.samplers.grid import TimeGrid, adaptive_grid, make_grid
from dfm_jax.flow.samplers.guidance import get_guidance
from dfm_jax.flow.samplers.jumps import Euler, Exact, TwoStage
from dfm_jax.flow.samplers.moves import Evaluations
from dfm_jax.flow.samplers.names import get_corrector, get_step
from dfm_jax.flow.samplers.solver import MixtureDiscreteEulerSolver, MixtureDiscreteSolver, Solver
from dfm_jax.flow.samplers.step import Step
from dfm_jax.flow.samplers.stochastic import Ancestral, DivFreeEuler, Multiflow, Psi, Remask
from dfm_jax.flow.samplers.unmasking.unmask import Unmask
from dfm_jax.flow.schedulers.base import HostSchedule, Scheduler, SchedulerOutput
from dfm_jax.flow.schedulers.names import SCHEDULERS, WITH_EXPONENT, get_scheduler
from dfm_jax.flow.schedulers.noise import GeometricScheduler, LogLinearScheduler
from dfm_jax.flow.schedulers.polynomial import (
    CondOTScheduler,
    CubicScheduler,
    OneMinusPowerScheduler,
    PolynomialConvexScheduler,
)
from dfm_jax.flow.schedulers.trigonometric import (
    CosineMD4Scheduler,
    KineticOptimalUniformScheduler,
    SineScheduler,
    SineSquaredScheduler,
)
from dfm_jax.flow.sources import CategoricalSource, MaskSource, Source, UniformSource, get_source
from dfm_jax.flow.time import Time, as_time, sample_times, unit_samples
from dfm_jax.flow.tree import Tree
