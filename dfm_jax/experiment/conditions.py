"""The conditions that tie fields together, or to a table of names in another room. Nothing is computed."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dfm_jax import flow, optim
from dfm_jax.config import TABLE, Config
from dfm_jax.config.accepted import LARGEST, MOST_TIMES, in_float32
from dfm_jax.config.checks import refuse, shown
from dfm_jax.data import vocabulary_size
from dfm_jax.data.sources.remote import is_url, refuse_credentials
from dfm_jax.data.views import weights
from dfm_jax.experiment import sizing
from dfm_jax.experiment.problem import get_path, get_sampling_scheduler, get_scheduler, get_source
from dfm_jax.flow.paths.metric.path import MOST_TOKENS_FOR_BOUND
from dfm_jax.flow.prediction import PARAMETRIZATIONS
from dfm_jax.runtime.errors import UsageError

# Modes that run the training step.
TRAIN = ("train", "compile", "benchmark")
# Modes that know neither a text nor a run which would say what a field that is 'auto' is.
WITHOUT_TEXT = ("compile", "benchmark", "import")
WITHOUT_PROMPT = ("train", "eval")
# The smallest time that is drawn: the middle of the first of 2**32 cells of [0, 1].
FIRST_TIME = 2.0**-33


def check(config: Config, mode: str | None = None) -> None:
    """Raises UsageError for the first field that does not go with the others, before any work starts.

    mode: what the config is for; some values evaluate and do not train. None: whatever does not train.
    """
    # First of all: what follows may repeat these in a line or a file.
    for field, spec in (("data.train", config.data.train), ("data.valid", config.data.valid),
                        *(("eval.corpora", corpus) for corpus in config.eval.corpora)):  # fmt: skip
        refuse_credentials(spec, f"config.{field}")
    parts = weights.mixture(config.data.train, "config.data.train")
    weights.changes(config.data.reweight, len(parts), "config.data.reweight")
    if parts and not config.data.valid:
        refuse("data.valid", "(empty)", "a text to validate on: nothing is held out of a mixture")
    if is_url(config.data.cache_dir):
        refuse("data.cache_dir", config.data.cache_dir, "a folder on a file system")
    if config.training.auto:
        if mode in WITHOUT_TEXT:
            refuse(config.training.auto[0], "auto", f"a value: --mode={mode} reads no text to find one from "
                   f"(so too for {', '.join(config.training.auto[1:]) or 'no other field'})")  # fmt: skip
        config, _ = sizing.settle(config, *sizing.NOMINAL)
    check_optimizer(config)
    check_sizes(config)
    check_time(config)
    if config.flow.path == "metric" and config.eval.elbo:
        size = vocabulary_size(config.tokenizer.name)
        if size > MOST_TOKENS_FOR_BOUND:
            refuse(
                "eval.elbo", True,
                f"false on the metric path with {size} tokens: its bound costs the square of the vocabulary, and is "
                f"estimated up to {MOST_TOKENS_FOR_BOUND}",
            )  # fmt: skip
    if config.training.deterministic and config.model.attention == "cudnn":
        refuse("model.attention", "cudnn", "auto, xla or pallas with training.deterministic = true: the backward pass "
               "of cuDNN's attention adds in no fixed order")  # fmt: skip
    if config.checkpoint.restore_changed and not config.checkpoint.restore_from:
        refuse("checkpoint.restore_changed", config.checkpoint.restore_changed, "() without checkpoint.restore_from")
    if not config.eval.corpora and config.eval.elbo:
        refuse("eval.corpora", (), "at least one corpus, or --config.eval.elbo=false")
    if mode in TRAIN and config.model.compute_dtype == "float16":
        refuse(
            "model.compute_dtype",
            "float16",
            "bfloat16 or float32 for training: gradients below 6e-8 are 0 in float16, and no loss is scaled here; "
            "float16 is for evaluation and sampling",
        )
    check_problem(config, mode)


def check_optimizer(config: Config) -> None:
    check_name("optim.name", config)
    with naming("optim.name", config):
        optim.from_config(config.optim)
    if config.optim.warmup > config.optim.n_iters:
        refuse("optim.warmup", config.optim.warmup, f"at most optim.n_iters = {config.optim.n_iters}")
    for name, factor in (("exponents_lr", config.optim.exponents_lr), ("eta_min_ratio", config.optim.eta_min_ratio)):
        product = in_float32(config.optim.lr * factor)
        if not math.isfinite(product) or (product == 0) != (factor == 0):
            refuse(f"optim.{name}", factor, f"a number whose product with optim.lr float32 holds, not {product:g}")


def check_sizes(config: Config) -> None:
    model, training, mesh = config.model, config.training, config.mesh
    if model.hidden_size % (2 * model.n_heads):
        refuse(
            "model.hidden_size",
            model.hidden_size,
            f"a multiple of 2 * model.n_heads = {2 * model.n_heads} (rotary pairs per head)",
        )
    if training.batch_size % training.grad_accum:
        refuse("training.grad_accum", training.grad_accum, f"a divisor of training.batch_size = {training.batch_size}")
    if list(mesh.values()).count(-1) > 1:
        refuse("mesh.fsdp", mesh.fsdp, "at most one -1 among mesh.data, mesh.fsdp and mesh.tensor")


def check_time(config: Config) -> None:
    """Whether the network may be told the time, or not."""
    # From masks the posterior does not depend on the time. Published leave-one-out networks that are told no sigma see
    # from the other tokens how much noise there is.
    told_sigma = (config.model.parametrization, config.model.time_input) == ("leave_one_out", "sigma")
    blind = config.flow.source_distribution == "mask" or told_sigma
    if not config.model.time_conditioning and not (blind and config.flow.path == "mixture"):
        refuse("model.time_conditioning", False, "true where the posterior depends on the time")
    if config.flow.loss_function == "masked_count" and config.model.time_conditioning:
        refuse("model.time_conditioning", True, "false for masked_count, a loss without a time")


def check_problem(config: Config, mode: str | None = None) -> None:
    """Path, source, loss and sampler go together. On two tokens, for what a corpus or a file would have to tell."""
    with naming("flow.scheduler_type", config):
        scheduler = get_scheduler(config, 2)
    check_schedule(config, scheduler)
    with naming("sampling.scheduler", config):
        get_sampling_scheduler(config, 2)
    source = get_source(config, 2, law=np.full(2, 0.5))
    if config.flow.path == "kinetic_optimal" and config.flow.source_distribution != "unigram":
        refuse("flow.source_distribution", config.flow.source_distribution,
               "unigram with flow.path = kinetic_optimal (the others have scalar schedulers)")  # fmt: skip
    with naming("flow.path", config):
        path = get_path(config, scheduler, source, exponents=np.ones(2), embeddings=np.eye(2))
    check_path(config, path, source)
    check_name("flow.loss_function", config)
    check_loss(config, path, source)
    with naming("flow.loss_function", config):
        objective = flow.get_objective(
            config.flow.loss_function, path=path, source=source, parametrization=config.model.parametrization
        )
    if config.flow.path == "genmd4" and config.flow.exponents == "learned" and objective.bounds is None:
        # Any other loss falls where tokens that are hard to tell are revealed first.
        refuse("flow.loss_function", config.flow.loss_function,
               "a bound where flow.exponents = learned: masked_elbo or generalized_kl")  # fmt: skip
    with naming("sampling.method", config):
        step = path.get_step(config.sampling.method)
        check_options(step, config.sampling.steps or config.flow.sampling_steps)
        solver = functools.partial(flow.Solver, lambda x, t: x, path, source, step=step)
        solver()
    corrector = config.sampling.corrector or None
    with naming("sampling.corrector", config):
        solver(corrector=corrector)
        if corrector is not None:
            check_options(flow.get_corrector(corrector), config.sampling.steps or config.flow.sampling_steps)
    with naming("sampling.guidance", config):
        solver(corrector=corrector, guidance=config.sampling.guidance)
        if flow.get_guidance(config.sampling.guidance) != 1 and mode in WITHOUT_PROMPT:
            raise ValueError(f"expected 1 in the mode {mode}, whose samples have no prompt")


def fits(check: Callable[[], Any]) -> bool:
    """Whether a check of the mathematics passes."""
    try:
        check()
    except ValueError:
        return False
    return True


def check_path(config: Config, path: flow.Path, source: flow.Source) -> None:
    """The path goes with the source and the parametrization; what would go with it is found by trying."""
    parametrization = config.model.parametrization
    if fits(lambda: path.check(source, parametrization)):
        return
    sources = {
        "uniform": flow.UniformSource(2),
        "mask": flow.MaskSource(2),
        "unigram": flow.get_source("categorical", 2, np.full(2, 0.5)),
    }
    good = [
        n
        for n, other in sources.items()
        if any(fits(functools.partial(path.check, other, p)) for p in PARAMETRIZATIONS)
    ]
    if good and config.flow.source_distribution not in good:
        refuse("flow.source_distribution", config.flow.source_distribution,
               f"{' or '.join(good)} with flow.path = {config.flow.path}")  # fmt: skip
    better = [p for p in PARAMETRIZATIONS if fits(functools.partial(path.check, source, p))]
    if better:
        refuse("model.parametrization", parametrization, f"{' or '.join(better)} with flow.path = {config.flow.path}")
    with naming("flow.path", config):
        path.check(source, parametrization)


def check_loss(config: Config, path: flow.Path, source: flow.Source) -> None:
    """The loss goes with the path and the source; those that do are found by trying."""

    def get(name: str) -> Any:
        return flow.get_objective(name, path=path, source=source, parametrization=config.model.parametrization)

    if not fits(lambda: get(config.flow.loss_function)):
        good = [name for name in flow.OBJECTIVES if fits(functools.partial(get, name))]
        refuse("flow.loss_function", config.flow.loss_function,
               f"{', '.join(good)} with flow.path = {config.flow.path}, "
               f"flow.source_distribution = {config.flow.source_distribution} and "
               f"model.parametrization = {config.model.parametrization}")  # fmt: skip


def check_schedule(config: Config, scheduler: flow.Scheduler) -> None:
    """The times that float32 can draw pass through the path; an exponent far from 1 leaves it before the first one,
    or has not begun it at the last."""
    exponent, last = config.flow.exponent, max(config.flow.time_epsilon, FIRST_TIME)
    first_kappa = float(scheduler.float64(FIRST_TIME, 1 - FIRST_TIME).kappa)
    last_kappa = float(scheduler.float64(1 - last, last).kappa)
    if first_kappa > 0.01:
        refuse("flow.exponent", exponent,
               f"an exponent that leaves the path to the times that are drawn; with this one kappa is "
               f"{first_kappa:.3g} at the first, 2**-33, and its slope at t = 0 is infinite")  # fmt: skip
    if last_kappa < 0.5:
        refuse("flow.exponent", exponent,
               f"an exponent that leaves the path to the times that are drawn; with this one kappa is "
               f"{last_kappa:.3g} at the last, 1 - {last:.3g}")  # fmt: skip
    endless = not math.isfinite(float(scheduler.float64(0.0, 1.0).d_kappa))
    # With the squared law times are the inverse of a kappa that is drawn.
    if endless and config.flow.time_law == "squared" and not in_float32(float(scheduler.float64_inverse(2.0**-32).t)):
        refuse(
            "flow.exponent",
            exponent,
            "an exponent with which flow.time_law = squared draws times above 0; float32 makes the first 0, where the "
            "slope is infinite",
        )
    if config.flow.path == "metric" and config.flow.beta == "power":
        with np.errstate(over="ignore"):
            hottest = config.flow.beta_c * np.float64((1 - last) / last) ** config.flow.beta_a
        if in_float32(float(hottest)) in (0, math.inf):
            refuse("flow.beta_a", config.flow.beta_a,
                   f"an exponent with which beta at the last time, 1 - {last:.3g}, is a number in float32")  # fmt: skip


def check_options(step: Any, steps: int) -> None:
    """The options of a sampler's step: counts are whole, numbers finite, in float32 too. Raises ValueError."""
    for field in dataclasses.fields(step) if dataclasses.is_dataclass(step) else ():
        value = getattr(step, field.name)
        if not field.init or callable(value) or isinstance(value, str):
            continue
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            if not isinstance(value, int) or not 0 <= value <= LARGEST:
                raise ValueError(f"{field.name}={value}: expected an integer of 0 or more, below 2**31")
            # A trajectory is planned whole, up to three rows for each repetition of a step.
            if steps * (1 + 2 * value) > MOST_TIMES:
                raise ValueError(f"{field.name}={value}: expected at most {(MOST_TIMES // steps - 1) // 2}, "
                                 f"so that {steps} steps with it are at most 2**24 rows")  # fmt: skip
        elif isinstance(value, (int, float)):
            becomes = in_float32(float(value)) if abs(value) < 2**1000 else math.inf
            if not math.isfinite(becomes) or (becomes == 0) != (value == 0):
                raise ValueError(f"{field.name}={value}: expected a finite number that float32 holds")


def check_name(name: str, config: Config) -> None:
    """UsageError where a field's value is not in the table of names that the field cites."""
    accepted = TABLE[name].accepted
    if accepted.names and config[name] not in set(accepted.names()):
        refuse(name, config[name], str(accepted))


@contextlib.contextmanager
def naming(field: str, config: Config) -> Iterator[None]:
    """Turns a ValueError of the inner rooms into a UsageError whose line begins with the field."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"config.{field} = {shown(config[field])}: {' '.join(str(error).split())}") from error
