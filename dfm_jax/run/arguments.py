"""What a Python caller hands to a run, checked: each fault is a ValueError that names the argument."""

import contextlib
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.config import TABLE
from dfm_jax.config.accepted import type_fault, value_fault
from dfm_jax.runtime.errors import UsageError


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    raise ValueError(
        f"{name} = {value!r}: expected {expected}" if len(repr(value)) < 200 else f"{name}: expected {expected}"
    )


def integer(name: str, value: Any, least: int, most: int = 2**31 - 1) -> int:
    """`value` as an int in [least, most]; numpy's integers are integers, True is none."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        told = most < 2**31 - 1 or (number is not None and number > most)
        refuse(name, value, f"an integer from {least}" + (f" to {most}" if told else ""))
    return number


def of_field(name: str, value: Any, field: str) -> Any:
    """`value` as the config's field accepts it."""
    stated = TABLE[field]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    if stated.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    fault = type_fault(value, stated.kind) or value_fault(value, stated.accepted)
    if fault:
        refuse(name, value, fault)
    return value


def ids(name: str, value: Any, *, below: int, longest: int) -> np.ndarray:
    """`value`, nested lists or an array, as (B, L) int32 with B, L >= 1, L <= longest and ids in [0, below)."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name}: expected rows of equal length, (B, L)") from None
    if array.ndim != 2 or not array.size or array.shape[1] > longest:
        raise ValueError(f"{name} of shape {array.shape}: expected (B, L) with B >= 1 and L from 1 to {longest}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} of {array.dtype}: expected integer ids")
    if array.min() < 0 or array.max() >= below:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{name} has the id {wrong}: expected ids from 0 to {below - 1}")
    return array.astype(np.int32)


def times(name: str, value: Any, rows: int) -> np.ndarray:
    """`value`, one number or one a row, as (rows,) float32 in [0, 1]."""
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a number in [0, 1], or one for each of the {rows} rows") from None
    if array.shape not in ((), (rows,)):
        raise ValueError(f"{name} of shape {array.shape}: expected a number, or ({rows},), one for each row of x_t")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name} = {array.tolist()}: expected times in [0, 1]")
    return np.broadcast_to(array, (rows,))


def function_of_time(name: str, value: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """`value`, a function of t (N,) to (N,) or to one number, that jax can trace."""
    t = jax.ShapeDtypeStruct((2,), np.float32)
    try:
        jax.eval_shape(lambda t: jnp.broadcast_to(jnp.asarray(value(t), t.dtype), t.shape), t)
    except Exception as error:  # whatever the caller's function raises
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"{name}: expected a function of t, (N,) to (N,), that jax can trace; {why}") from error
    return value


def is_spread(value: Any) -> bool:
    """Whether an array lies on other processes too, so that no one process can look at all of it."""
    return isinstance(value, jax.Array) and not value.is_fully_addressable


@contextlib.contextmanager
def as_value_errors(prefix: str = "") -> Iterator[None]:
    """Turns a UsageError, whose line names a field or flag, into a ValueError. prefix: taken from the line's begin."""
    try:
        yield
    except UsageError as error:
        raise ValueError(re.sub(f"^{re.escape(prefix)}", "", str(error))) from error
