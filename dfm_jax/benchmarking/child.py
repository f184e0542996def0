"""`python -m dfm_jax.benchmarking.child REQUEST.json LINES.jsonl`: measures one case in a process of its own.

A process of its own, because a device's peak memory is that of a process, because a program that does not fit or a
compiler that gives up must not end the others, and because only a process can be stopped in the middle.

Every line of the answer is written as soon as it is known: {"machine": ...} where no case is asked for, or
{"no_device": reason}; else {"row": ...}, {"missing": ...}, {"usage": ...} for a command that is wrong, and at the end
{"done": seconds}.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

from dfm_jax.runtime.errors import UsageError


def main() -> None:
    request, answer = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")), pathlib.Path(sys.argv[2])
    with answer.open("a", buffering=1) as file:

        def tell(kind: str, value: Any) -> None:
            file.write(json.dumps({kind: value}) + "\n")

        try:
            measure(request, tell)
        except UsageError as error:
            tell("usage", str(error))


def measure(request: dict[str, Any], tell) -> None:
    """Carries out a request {case, config, vocab_size, trace}; `tell(kind, value)` takes what it finds.

    Raises:
        UsageError: the mesh of the config does not match the devices.
    """
    started = time.monotonic()
    import jax

    from dfm_jax import config as configs
    from dfm_jax.benchmarking import results
    from dfm_jax.benchmarking.cases import BENCHMARKS, Case, fitted
    from dfm_jax.benchmarking.counterparts import NotHereError
    from dfm_jax.experiment import conditions

    if request["case"] is None:
        try:
            tell("machine", results.machine())
        except (RuntimeError, AssertionError) as error:  # the second where a plugin is installed and finds no device
            why = results.in_one_line(error) if str(error) else "JAX finds none"
            platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
            tell("no_device", f"JAX_PLATFORMS = {platforms}: {why}")
        return
    case = Case(**request["case"])
    config = case.apply(configs.from_json(request["config"]))
    try:
        conditions.check(config, "benchmark")  # the config as it was given has been checked, with this field not
    except UsageError as error:
        tell("missing", {"name": case.name, "reason": str(error)})
        tell("done", round(time.monotonic() - started, 1))
        return
    config, said = fitted(config, jax.default_backend(), jax.device_count())
    profiled = contextlib.nullcontext() if request["trace"] is None else jax.profiler.trace(request["trace"])
    try:
        with profiled:
            for found in BENCHMARKS[case.benchmark](config, request["vocab_size"]):
                if isinstance(found, results.Missing):
                    tell("missing", dataclasses.asdict(found))
                    continue
                note = "; ".join(filter(None, (found.note, said)))
                tell("row", dataclasses.asdict(dataclasses.replace(found, benchmark=case.name, note=note)))
                said = ""  # once a case
    except NotHereError as error:
        tell("missing", {"name": case.name, "reason": str(error)})
    except UsageError:
        raise
    except Exception as error:  # out of memory, a device that cannot: any of many types
        tell("missing", {"name": case.name, "reason": results.in_one_line(error)})
    tell("done", round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
