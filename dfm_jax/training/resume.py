"""Which fields of the config may change when a run is continued."""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from dfm_jax import config as configs
from dfm_jax.config import NETWORK, TABLE
from dfm_jax.data.views import weights
from dfm_jax.runtime.errors import UsageError, WorldError

Saved = Mapping[str, Mapping[str, Any]]  # {group: {field: value}}


def check(
    saved: Saved,
    config: Saved,
    *,
    workdir: str | os.PathLike,
    saved_fingerprint: str | None = None,
    fingerprint: str | None = None,
    done: int = 0,
) -> list[str]:
    """Compares the config of the run in `workdir` with the config to continue it with, by the rule of each field.

    Args:
      saved: {group: {field: value}} of the run's last start. A field that is newer than the run has its default.
      config: the same for the start now.
      saved_fingerprint: of the tokens that the run trains on; None if not known, and then not compared.
      fingerprint: of the tokens that `config` names.
      done: updates that the run's newest checkpoint holds. With 0, the network alone is fixed.

    Returns: a line "field: old -> new" for every change that is allowed.

    Raises:
      WorldError: a change is not allowed. The error names every such change with both values.
    """
    try:
        saved = configs.complete(saved)
    except UsageError as error:
        raise WorldError(f"workdir = {os.fspath(workdir)}: its checkpoint's {error}") from error
    accepted, refused = [], []
    for name, old, new in differences(saved, config):
        rule = TABLE[name].continues if name in TABLE else None
        if rule is not None and (rule.holds(old, new, done) or (done == 0 and _may_begin_with(name))):
            accepted.append(f"{name}: {old!r} -> {new!r}")
        else:
            words = "" if rule is None or rule is configs.FIXED else f" (may change {rule.words})"
            refused.append(f"{name}: {old!r} -> {new!r}{words}")
    before, now = (weights.mixture(tree["data"]["train"], "data.train") for tree in (saved, config))
    if before and now and weights.shares(before) != weights.shares(now):
        refused.append(
            f"data.train: {saved['data']['train']!r} -> {config['data']['train']!r} (weights of a mixture change by "
            "data.reweight alone)"
        )
    if None not in (saved_fingerprint, fingerprint) and saved_fingerprint != fingerprint:
        name = config["data"]["train"]
        refused.append(f"data.train: {name} has other tokens ({saved_fingerprint} -> {fingerprint})")
    if refused:
        raise WorldError(
            f"workdir = {os.fspath(workdir)}: expected the config that its run was begun with, another --workdir, or "
            f"--config.checkpoint.restore_from={shlex.quote(os.fspath(workdir))} in a new one; "
            f"changed are {'; '.join(refused)}"
        )
    return accepted


def _may_begin_with(name: str) -> bool:
    """Whether a field may have another value before the first update, as for imported weights: all but what the saved
    arrays depend on."""
    kept = name in NETWORK or name.startswith("model.") or name in ("optim.name", "optim.ema_decay")
    return not kept


def differences(saved: Saved, config: Saved) -> list[tuple[str, Any, Any]]:
    """("group.field", old, new) for every field whose values differ, sorted by name."""
    old, new = (_flat(tree) for tree in (saved, config))
    return [(name, old.get(name), new.get(name)) for name in sorted(old | new) if old.get(name) != new.get(name)]


def _flat(tree: Saved) -> dict[str, Any]:
    # JSON has no tuples.
    return {name: list(v) if isinstance(v, tuple) else v for name, v in configs.flatten(tree).items()}
