"""What may change when a run is continued, and what may not."""

import fnmatch
import os
from collections.abc import Mapping
from typing import Any

from dfm_jax.errors import WorldError

# Fields that may change. What is not here says what is being learned, from what, in which order; a run continued with
# another value of it would be neither the old run nor a new one.
ACCEPTED = (
    # What is reported, kept, evaluated and generated does not touch training.
    "logging.*",
    "checkpoint.*",
    "eval.*",
    "sampling.*",
    "data.valid",
    "data.packing",
    "flow.sampling_steps",
    "training.snapshot",
    "training.eval_freq",
    "training.perplexity_freq",
    "training.max_bad_steps",
    # Where and how the same is computed: equal but for rounding.
    "mesh.*",
    "data.cache_dir",
    "data.num_workers",
    "data.train",  # a corpus may move; its fingerprint may not change
    "data.on_error",  # likewise
    "data.max_error_share",
    "training.grad_accum",
    "training.unroll",
    "model.attention",
    "model.head",
    "model.remat",
    "model.compute_dtype",
    "model.residual_dtype",
    # More steps, and the way out of a run that diverges: gentler updates from its last good checkpoint.
    "optim.n_iters",
    "optim.lr",
    "optim.warmup",
    "optim.eta_min_ratio",
    "optim.grad_clip",
    "optim.weight_decay",
    "model.dropout",
)


def check(
    saved: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Mapping[str, Any]],
    *,
    workdir: str | os.PathLike,
    saved_fingerprint: str | None = None,
    fingerprint: str | None = None,
) -> list[str]:
    """Compares the config of the run in `workdir` with the one it is to be continued with.

    Args:
      saved: {group: {field: value}} as the run was last started.
      config: likewise, as it is started now.
      saved_fingerprint: of the tokens that the run trains on; None = not known yet, and not compared.
      fingerprint: of the tokens that `config` names.

    Returns: a line "field: old -> new" for every change that is accepted.

    Raises:
      WorldError: naming every change that is not, with both values.
    """
    changes = differences(saved, config)
    refused = [line for field, line in changes.items() if not is_accepted(field, saved, config)]
    if None not in (saved_fingerprint, fingerprint) and saved_fingerprint != fingerprint:
        name = _get(config, "data.train")
        refused.append(f"data.train: {name} has other tokens ({saved_fingerprint} -> {fingerprint})")
    if refused:
        raise WorldError(
            f"workdir={os.fspath(workdir)}: accepted the config that its run was begun with, another --workdir, or "
            f"--config.checkpoint.restore_from={os.fspath(workdir)} in a new one; changed are {'; '.join(refused)}"
        )
    return [line for field, line in changes.items() if is_accepted(field, saved, config)]


def differences(saved: Mapping[str, Mapping[str, Any]], config: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{"group.field": "group.field: old -> new"} of the fields whose values differ."""
    fields = sorted({f"{group}.{name}" for tree in (saved, config) for group in tree for name in tree[group]})
    pairs = {field: (_get(saved, field), _get(config, field)) for field in fields}
    return {field: f"{field}: {old!r} -> {new!r}" for field, (old, new) in pairs.items() if old != new}


def is_accepted(field: str, saved: Mapping[str, Mapping[str, Any]], config: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a run may be continued with another value of `field` ("group.name")."""
    if field == "optim.ema_decay":  # another pace is, but an average cannot begin or end in mid-run
        return bool(_get(saved, field)) and bool(_get(config, field))
    return any(fnmatch.fnmatchcase(field, pattern) for pattern in ACCEPTED)


def _get(tree: Mapping[str, Mapping[str, Any]], field: str) -> Any:
    group, name = field.split(".", 1)
    value = tree.get(group, {}).get(name)
    return list(value) if isinstance(value, tuple) else value  # JSON has no tuples
