"""A run's config at the boundary: read, written, checked whole before any work starts.

Inside the program modules take frozen dataclasses or plain arguments; the ConfigDict stops here.
"""

import contextlib
import importlib.util
import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dfm_jax import flow
from dfm_jax.configs import base
from dfm_jax.errors import UsageError, WorldError
from dfm_jax.problem import get_path, get_sampling_scheduler, get_scheduler, get_source
from dfm_jax.training import optimizer

# Names of the reference that have no field here, each with the way to say it now.
GONE = {
    "compute": "devices are found by themselves; lay them out with --config.mesh.data/fsdp/tensor",
    "model.compile": "everything is compiled; there is nothing to switch",
    "optim.fused": "XLA fuses the update; there is nothing to switch",
    "optim.log_lr_every": "the learning rate is on every line of metrics.jsonl; see --config.logging.log_freq",
    "logging.log_lr_every": "the learning rate is on every line of metrics.jsonl; see --config.logging.log_freq",
    "logging.log_file_name": "metrics go to metrics.jsonl and progress to the terminal",
    "hydra_dir": "--workdir=DIR",
    "load_dir": "--workdir=DIR continues a run; --config.checkpoint.restore_from=RUN starts from its weights",
}

Check = tuple[str, Callable[[Any], Any]]
LARGEST = 2**31 - 1  # steps and rows are counted in int32 on the devices
POSITIVE: Check = ("an integer above 0, below 2**31", lambda v: 1 <= v <= LARGEST)
COUNT: Check = ("an integer of 0 or more, below 2**31", lambda v: 0 <= v <= LARGEST)
FRACTION: Check = ("a number in [0, 1)", lambda v: 0 <= v < 1)
PROPORTION: Check = ("a number in (0, 1]", lambda v: 0 < v <= 1)
NON_NEGATIVE: Check = ("a number of 0 or more", lambda v: 0 <= v < math.inf)
ABOVE_ZERO: Check = ("a number above 0", lambda v: 0 < v < math.inf)
AXIS: Check = ("an integer above 0, or -1 for whatever is left", lambda v: 1 <= v <= LARGEST or v == -1)
SEED: Check = COUNT
NOT_EMPTY: Check = ("a name or a path", bool)


def one_of(*names: str) -> Check:
    return "one of " + ", ".join(names), lambda v: v in names


CHECKS: dict[str, Check] = {
    "data.train": NOT_EMPTY,
    "data.valid": NOT_EMPTY,
    "data.num_workers": COUNT,
    "data.cache_dir": NOT_EMPTY,
    "data.packing": one_of("continuous", "reference"),
    "tokenizer.name": ("gpt2, bytes or ids:N with N > 0", lambda v: re.fullmatch(r"gpt2|bytes|ids:0*[1-9]\d*", v)),
    "training.batch_size": POSITIVE,
    "training.grad_accum": POSITIVE,
    "training.unroll": COUNT,
    "training.snapshot": COUNT,
    "training.eval_freq": COUNT,
    "training.perplexity_freq": COUNT,
    "training.seed": SEED,
    "training.max_bad_steps": POSITIVE,
    "optim.lr": ABOVE_ZERO,
    "optim.beta1": FRACTION,
    "optim.beta2": FRACTION,
    "optim.eps": ABOVE_ZERO,
    "optim.weight_decay": NON_NEGATIVE,
    "optim.decay": one_of("all", "matrices"),
    "optim.warmup": COUNT,
    "optim.n_iters": POSITIVE,
    "optim.eta_min_ratio": ("a number in [0, 1]", lambda v: 0 <= v <= 1),
    "optim.grad_clip": NON_NEGATIVE,
    "optim.exponents_lr": ABOVE_ZERO,
    "optim.ema_decay": FRACTION,
    "flow.path": one_of("mixture", "three_term", "kinetic_optimal", "genmd4", "metric"),
    "flow.noise": PROPORTION,
    "flow.exponents": (
        "learned, a file that ends in .npy, or nothing",
        lambda v: v in ("", "learned") or v.endswith(".npy"),
    ),
    "flow.embeddings": (
        "random:WIDTH with WIDTH > 0, a .npy file or the folder of a run",
        lambda v: v and (not v.startswith("random:") or re.fullmatch(r"random:0*[1-9]\d*", v)),
    ),
    "flow.distance_power": ABOVE_ZERO,
    "flow.beta": one_of("power", "constant_speed"),
    "flow.beta_c": ABOVE_ZERO,
    "flow.beta_a": ABOVE_ZERO,
    "flow.source_distribution": one_of("uniform", "mask", "unigram"),
    "flow.exponent": ABOVE_ZERO,
    "flow.time_epsilon": FRACTION,
    "flow.time_law": one_of("uniform", "squared"),
    "flow.time_sampling": one_of("iid", "stratified", "antithetic"),
    "flow.coupling": one_of("independent", "conditional"),
    "flow.sampling_steps": POSITIVE,
    "model.hidden_size": POSITIVE,
    "model.cond_dim": POSITIVE,
    "model.length": POSITIVE,
    "model.n_blocks": POSITIVE,
    "model.n_heads": POSITIVE,
    "model.dropout": FRACTION,
    "model.mlp_ratio": POSITIVE,
    "model.attention": one_of("auto", "xla", "cudnn", "pallas"),
    "model.head": one_of("auto", "dense", "blocks", "pallas"),
    "model.remat": one_of("none", "blocks", "dots"),
    "model.compute_dtype": one_of("auto", "float32", "bfloat16", "float16"),
    "model.residual_dtype": one_of("float32", "bfloat16"),
    "model.parametrization": one_of("posterior", "leave_one_out"),
    "model.time_scale": ABOVE_ZERO,
    "model.time_input": one_of("t", "kappa"),
    "eval.batch_size": POSITIVE,
    "eval.sample_batch_size": POSITIVE,
    "eval.perplexity_batch_size": POSITIVE,
    "eval.time_points": POSITIVE,
    "eval.num_samples": POSITIVE,
    "sampling.num": POSITIVE,
    "sampling.batch_size": POSITIVE,
    "sampling.steps": COUNT,
    "sampling.temperature": NON_NEGATIVE,
    "sampling.top_p": PROPORTION,
    "sampling.seed": SEED,
    "logging.log_freq": POSITIVE,
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.tensor": AXIS,
    "checkpoint.keep_last": POSITIVE,
    "checkpoint.keep_every": COUNT,
}


def load_file(path: str) -> ConfigDict:
    """The config that `get_config()` of the Python file at `path` returns."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise UsageError(
            f"config={path}: accepted is a Python file that defines get_config(), such as {known_configs()}"
        )
    spec = importlib.util.spec_from_file_location("dfm_jax_config", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"config={path}: accepted is a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise UsageError(
            f"config={path}: accepted is a file whose get_config() runs; it raised {one_line(error)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UsageError(
            f"config={path}: accepted is a get_config() that returns a ConfigDict, not {type(config).__name__}"
        )
    return config


def bundled_configs() -> pathlib.Path:
    """The folder of the experiments that come with the package."""
    return pathlib.Path(str(base.__file__)).resolve().parent


def known_configs() -> str:
    names = sorted(p.stem for p in bundled_configs().glob("*.py") if p.stem not in ("__init__", "base"))
    return ", ".join(f"configs/{name}.py" for name in names)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str, origin: str = "config.json") -> ConfigDict:
    """The inverse of `to_json`. Fields newer than the text take the value of `configs/base.py`.

    Raises WorldError, naming `origin`, where the text is no such config, or one of another version.
    """
    try:
        saved = json.loads(text)
    except ValueError as error:
        raise WorldError(f"{origin}: accepted is a config that a run saved; {one_line(error)}") from error
    if not isinstance(saved, dict) or not all(isinstance(part, dict) for part in saved.values()):
        raise WorldError(f"{origin}: accepted is a config that a run saved, an object of groups of fields")
    config = base.get_config()
    for group, fields in saved.items():
        if group not in config:
            raise WorldError(f"{origin}: {group} is no group of this version; accepted are {', '.join(config)}")
        for name, value in fields.items():
            if name not in config[group]:
                raise WorldError(
                    f"{origin}: {group}.{name} is no field of this version; accepted are {', '.join(config[group])}"
                )
            value = tuple(value) if isinstance(value, list) else value
            if wanted := other_type(value, config[group][name]):
                raise WorldError(f"{origin}: {group}.{name}={value!r}: accepted is {wanted}")
            config[group][name] = value
    return config


def load_run(folder: pathlib.Path) -> ConfigDict:
    """The config that the run in `folder` saved. Raises WorldError where it cannot be read."""
    path = folder / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"{path}: accepted is a config that a run saved; {one_line(error)}") from error
    return from_json(text, str(path))


TYPES = {str: "text", bool: "true or false", int: "an integer", float: "a number", tuple: "a list of texts"}


def other_type(value: Any, like: Any) -> str | None:
    """What a field whose default is `like` takes, if `value` is no such thing; an integer is a number too."""
    kind = type(like)
    if isinstance(value, tuple):
        fits = kind is tuple and all(isinstance(item, str) for item in value)
    elif isinstance(value, bool):
        fits = kind is bool
    else:
        fits = isinstance(value, (int, float) if kind is float else kind)
    return None if fits else TYPES[kind]


def fields(config: ConfigDict) -> dict[str, Any]:
    """{'group.field': value} of the whole config."""
    return {f"{group}.{name}": value for group, part in config.items() for name, value in part.items()}


def refuse(field: str, value: Any, accepted: str):
    raise UsageError(f"config.{field}={value}: accepted is {accepted}")


def check(config: ConfigDict) -> None:
    """Raises UsageError for the first field that this program cannot work with, before any work starts."""
    known = fields(base.get_config())
    values = fields(config)
    for field in values:
        if field not in known:
            refuse(field, values[field], f"a field of configs/base.py: {', '.join(known)}")
    for field in known:
        if field not in values:
            raise UsageError(f"config.{field}=(missing): accepted is a config with every field of configs/base.py")
    for field, like in known.items():
        # ml_collections lets a config's file set any field to None.
        if wanted := other_type(values[field], like):
            refuse(field, values[field], wanted)
    for field, (accepted, holds) in CHECKS.items():
        if not holds(values[field]):
            refuse(field, repr(values[field]) if isinstance(values[field], str) else values[field], accepted)
    check_together(config)


def check_together(config: ConfigDict) -> None:
    """The conditions that tie several fields together."""
    if config.optim.warmup > config.optim.n_iters:
        refuse("optim.warmup", config.optim.warmup, f"at most optim.n_iters={config.optim.n_iters}")
    if config.model.hidden_size % (2 * config.model.n_heads):
        refuse(
            "model.hidden_size",
            config.model.hidden_size,
            f"a multiple of 2 * model.n_heads={2 * config.model.n_heads} (rotary pairs per head)",
        )
    if config.training.batch_size % config.training.grad_accum:
        refuse(
            "training.grad_accum",
            config.training.grad_accum,
            f"a divisor of training.batch_size={config.training.batch_size}",
        )
    if list(config.mesh.values()).count(-1) > 1:
        refuse("mesh.fsdp", config.mesh.fsdp, "at most one -1 among mesh.data, mesh.fsdp and mesh.tensor")
    if not config.model.time_conditioning and (config.flow.source_distribution, config.flow.path) != (
        "mask",
        "mixture",
    ):
        refuse("model.time_conditioning", False, "True where the posterior depends on the time")
    if config.flow.loss_function == "masked_count" and config.model.time_conditioning:
        refuse("model.time_conditioning", True, "False for masked_count, a loss without a time")
    if config.flow.path == "metric" and config.eval.elbo and config.tokenizer.name != "bytes":
        refuse("eval.elbo", True, "False on the metric path, whose bound costs the square of a vocabulary beyond bytes")
    if not config.eval.corpora and config.eval.elbo:
        refuse("eval.corpora", "()", "at least one corpus, or --config.eval.elbo=False")

    with naming(f"config.flow.scheduler_type={config.flow.scheduler_type}"):
        scheduler = get_scheduler(config, 2)
    with naming(f"config.sampling.scheduler={config.sampling.scheduler}"):
        get_sampling_scheduler(config, 2)
    source = get_source(config, 2, law=np.full(2, 0.5))
    with naming(f"config.flow.path={config.flow.path}"):
        path = get_path(config, scheduler, source, exponents=np.ones(2), embeddings=np.eye(2))
        path.check(source, config.model.parametrization)
    with naming(f"config.flow.loss_function={config.flow.loss_function}"):
        objective = flow.get_objective(
            config.flow.loss_function,
            path=path,
            source=source,
            parametrization=config.model.parametrization,
        )
    if config.flow.path == "genmd4" and config.flow.exponents == "learned" and objective.bounds is None:
        # Any other loss falls where tokens that are hard to tell are revealed first.
        refuse("flow.exponents", "learned", "with a bound as flow.loss_function: masked_elbo or generalized_kl")
    with naming(f"config.sampling.method={config.sampling.method}"):
        flow.MixtureDiscreteSolver(lambda x, t: x, path, source, step=config.sampling.method)
    try:
        optimizer.from_config(config.optim)
    except ValueError as error:
        raise UsageError(f"config.{error}") from error


@contextlib.contextmanager
def naming(field: str):
    """Turns a ValueError of the inner layers into a UsageError whose line begins with `field`."""
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{field}: {text}") from error
