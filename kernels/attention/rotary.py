"""Rotary embedding: rotates the coordinates i and i + head_dim/2 of a query or key by an angle for its position."""

import jax.numpy as jnp
from jax import Array

Tables = tuple[Array, Array]  # cosines and sines, (length, head_dim / 2) float32 each


def turn(first: Array, second: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """The real and imaginary parts of (first + i second) (cos + i sin). With -sin it is the inverse rotation."""
    return first * cos - second * sin, second * cos + first * sin


def rotate(x: Array, tables: Tables) -> Array:
    """x (B, L, H, head_dim) with its pairs of coordinates rotated, float32."""
    cos, sin = (table[None, :, None] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate(turn(first, second, cos, sin), -1)


def check(tables: Tables, length: int, head_dim: int) -> None:
    """Raises ValueError unless `tables` are those of `length` positions and heads of `head_dim`."""
    found = [(table.shape, table.dtype) for table in tables]
    if head_dim % 2 or found != [((length, head_dim // 2), jnp.float32)] * 2:
        said = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in found)
        raise ValueError(
            f"rotary = {said}: expected cosines and sines, float32[length, head_dim / 2] each, of {length} positions"
            f" and an even head_dim, here {head_dim}"
        )
