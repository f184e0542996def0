"""XLA's options for every program that runs on a device: `jit` is `jax.jit` with them.

XLA renames its options between versions, and refuses a name that it does not know. So each option is tried on a
program of one addition before it is used, once per process, and what this XLA does not take is left out with a note.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dfm_jax.runtime.terminal import note

Value = bool | int | str
Options = dict[str, Value]
Device = Any  # jax.Device, which type checkers do not take for a type
NOTE = "compiler: "  # how the line about an option that is left out begins


@dataclasses.dataclass(frozen=True)
class Wish:
    """One thing that is asked of XLA. `spellings` are (option, value), the newest version's first; one is enough."""

    purpose: str  # what is lost without it; ends the note
    spellings: tuple[tuple[str, Value], ...]


def _pipelined(collective: str) -> Wish:
    return Wish(
        f"{collective.replace('_', '-')} operations in loops are not overlapped with the next iteration",
        (
            (f"xla_gpu_pipeline_{collective}", "COLLECTIVE_PIPELINING_MODE_ON"),  # from jax 0.11.1
            (f"xla_gpu_enable_pipelined_{collective}", True),  # to jax 0.11.0
        ),
    )


# For every program on a GPU. By default XLA leaves out roundings to bfloat16 between operations, and then writes an
# array in float32 where one of its readers can use that: GELU's gradient, for the sum that is the bias's. Rounded as
# the code says, the kernels of configs/uniform_gkl.py for h100:1 took 113.9 ms at the chip's figures instead of 119.5
# (jax 0.10.2).
ROUNDING = (Wish("arrays that should be bfloat16 may be kept in float32", (("xla_allow_excess_precision", False),)),)
# For programs whose loops exchange data between GPUs. The reason of each is seen in the compiled program: figures of
# configs/model_1_7b.py for h100:8 (jax 0.10.2), from `hidden` in compile.json. The latency-hiding scheduler is on by
# default: asking for it changes nothing. Double buffering of loops stays out. It spares 0.2 to 0.8 % of the kernel
# time of the 1.7B step. But it also writes out the loop over the parts of a batch, and then XLA computes 16 % of the
# 7B step again to keep to its memory (jax 0.12.0.1: 62.4 GiB instead of 54.2).
COLLECTIVES = (
    # The blocks are a loop: without these, gathering the next block's parameters and reducing the last one's gradient
    # wait for the iteration's end. They hide 30.2 of 31.2 ms of link time behind kernels instead of 16.6.
    _pipelined("all_gather"),
    _pipelined("reduce_scatter"),
    _pipelined("all_reduce"),
)
# `training.deterministic`: the same program on the same GPUs gives the same bits in every run.
DETERMINISTIC = (
    # Scatter-adds sum in one order, and kernels that add atomically are not chosen.
    Wish("scatter-adds may sum in any order", (("xla_gpu_deterministic_ops", True),)),
    # Otherwise the fastest of several kernels is measured when the program is compiled, and noise decides close races.
    Wish("kernels are chosen by measured time", (("xla_gpu_autotune_level", 0),)),
)


def jit(
    function: Callable[..., Any],
    *,
    mesh: Mesh | None,
    communicates: bool = True,
    deterministic: bool = False,
    **arguments: Any,
) -> Any:
    """`jax.jit` with the options of `options`; `arguments` are `jax.jit`'s own.

    Only for programs called from Python: jax takes no options for a function that is called inside another jitted one.
    """
    chosen = options(mesh, communicates=communicates, deterministic=deterministic)
    return jax.jit(function, compiler_options=chosen, **arguments)


def options(mesh: Mesh | None, *, communicates: bool = True, deterministic: bool = False) -> Options:
    """Options for a program on `mesh`, on the default device if None. XLA's defaults for CPUs and TPUs are left alone.

    communicates: whether its loops exchange data between the devices. Never, on a mesh of one.
    deterministic: the same bits in every run, see `DETERMINISTIC`.
    """
    device = jax.devices()[0] if mesh is None else _device_here(mesh)
    several = mesh is not None and mesh.size > 1
    return known(wishes(device.platform, communicates=communicates and several, deterministic=deterministic), device)


def wishes(platform: str, *, communicates: bool, deterministic: bool) -> tuple[Wish, ...]:
    """What a program on `platform` ('cpu', 'gpu', 'cuda', 'tpu') is to be compiled with."""
    if platform not in ("gpu", "cuda"):
        return ()
    return ROUNDING + (COLLECTIVES if communicates else ()) + (DETERMINISTIC if deterministic else ())


def known(wanted: Sequence[Wish], device: Device) -> Options:
    """The options of `wanted` in the spelling that the XLA of `device` takes; one note for each that it does not."""
    found: Options = {}
    for wish in wanted:
        taken = next((s for s in wish.spellings if refusal(device, *s) is None), None)
        if taken is None:
            _note_once(wish, device)
        else:
            found[taken[0]] = taken[1]
    return found


@functools.cache
def refusal(device: Device, option: str, value: Value) -> str | None:
    """Why XLA does not compile for `device` with this option, or None if it does.

    An option that XLA knows and this platform has no use for is no refusal: all platforms share one table of names.
    """
    # A mesh of its own, in place of one that the caller may have set.
    mesh = Mesh(np.array([device]), ("device",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=place)
    program = jax.jit(_add_one, compiler_options={option: value}, out_shardings=place)
    try:
        # A compiler for a machine that is not here cannot read what it put in jax's cache, and warns.
        with warnings.catch_warnings(), jax.set_mesh(mesh):
            warnings.simplefilter("ignore")
            program.lower(number).compile()
    except RuntimeError as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _add_one(x: jax.Array) -> jax.Array:
    return x + 1


@functools.cache
def _note_once(wish: Wish, device: Device) -> None:
    if jax.process_index() == 0:
        reasons = "; ".join(dict.fromkeys(str(refusal(device, *s)) for s in wish.spellings))
        names = " or ".join(name for name, _ in wish.spellings)
        note(f"{NOTE}jax {jax.__version__} does not take {names}: {wish.purpose} ({reasons})")


def _device_here(mesh: Mesh) -> Device:
    """A device of the mesh that this process can compile for alone: the first of its own."""
    devices = list(mesh.devices.flat)
    here = (d for d in devices if d.process_index == d.client.process_index())
    return next(here, devices[0])
