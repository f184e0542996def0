"""One process of a small distributed program: restores the newest checkpoint of a folder, checks it, saves the next.

    PYTHONPATH=. python tests/faults/restore_elsewhere.py FOLDER DATA FSDP [PROCESS_ID NUM_PROCESSES PORT]

The mesh has DATA x FSDP devices over all processes; matrices are split over FSDP as in training.
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dfm_jax.checkpoints.store import Checkpoints


def numbers(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "step": np.asarray(step, np.int32),
        "kernel": rng.normal(size=(16, 64)).astype(np.float32),
        "stack": rng.normal(size=(3, 64, 8)).astype(np.float32),
    }


def main() -> None:
    folder, data, fsdp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 4:
        process, count, port = map(int, sys.argv[4:])
        jax.distributed.initialize(f"localhost:{port}", count, process)
    devices = jax.devices()[: data * fsdp]
    mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    places = {
        "step": NamedSharding(mesh, P()),
        "kernel": NamedSharding(mesh, P(None, "fsdp")),
        "stack": NamedSharding(mesh, P(None, "fsdp")),
    }

    def place(name: str, array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, places[name], lambda index: array[index])

    with Checkpoints(folder, keep_last=10) as checkpoints:
        step = 0
        if checkpoints.latest_step() is not None:
            abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=places[k]) for k, v in numbers(0).items()}
            step, state = checkpoints.restore(abstract)
            for name, array in state.items():
                assert array.sharding == places[name], name
                for shard in array.addressable_shards:
                    np.testing.assert_array_equal(np.asarray(shard.data), numbers(step)[name][shard.index])
        state = {name: place(name, array) for name, array in numbers(step + 1).items()}
        checkpoints.save(step + 1, state, block=True)
    print(f"process {jax.process_index()} of {jax.process_count()}, {data} x {fsdp}: restored {step}, saved {step + 1}")


if __name__ == "__main__":
    main()
