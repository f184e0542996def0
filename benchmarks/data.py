"""Speed of the data path: `python -m benchmarks.data`.

Loader: blocks of 1024 tokens per second through the training pipeline, on one core (goal: 15 000). Preparation: text
per second against tiktoken alone on the same cores (goal: 80 %), and the most memory that it took (goal: 1.5 GB).
"""

import argparse
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from dfm_jax.data import get_tokenizer, open_stream, prepare, train_batches
from dfm_jax.data.encoding import num_cores
from dfm_jax.data.manifest import Manifest
from dfm_jax.data.shards import ShardWriter
from dfm_jax.data.sources import pydocs

LENGTH = 1024
GOALS = {"blocks_per_second": 15_000, "ratio": 0.8, "peak_gigabytes": 1.5}


def loader(folder: pathlib.Path, *, shards: int = 4, seconds: float = 5.0, batch_size: int = 64) -> dict[str, float]:
    """Blocks per second of `train_batches` on one core, over `shards` files of 32 MB of random tokens."""
    generator = np.random.default_rng(0)
    written = []
    for i in range(shards):
        writer = ShardWriter(folder, f"{i}.npy", "<u2")
        writer.write(generator.integers(0, 50257, 1 << 24, np.uint16))
        written.append(writer.close())
    Manifest(
        corpus="random", split="train", tokenizer="gpt2", vocab_size=50257, eos_id=50256, dtype="<u2",
        packing="continuous", num_documents=0, num_tokens=shards << 24, num_bytes=0, repaired=0, skipped=0,
        shards=tuple(written), segments=(), code_version="",
    ).save(folder)  # fmt: skip
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        batches = train_batches(open_stream(folder), length=LENGTH, batch_size=batch_size, seed=0)
        for _ in range(20):
            next(batches)
        start, processor, blocks = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            blocks += batch_size
        elapsed, processor = time.perf_counter() - start, time.process_time() - processor
    finally:
        os.sched_setaffinity(0, everywhere)
    rate = blocks / elapsed
    return {
        "blocks_per_second": rate,
        "blocks_per_cpu_second": blocks / processor,
        "of_goal": rate / GOALS["blocks_per_second"],
    }


def preparation(folder: pathlib.Path, *, megabytes: int = 100, rounds: int = 2) -> dict[str, float]:
    """Megabytes of text per second of `prepare` with GPT-2's tokens, and of tiktoken alone; the best of the rounds."""
    import tiktoken

    source = folder / "corpus.parquet"
    documents = _write_corpus(source, megabytes)
    size = sum(len(document.encode()) for document in documents) / 1e6
    tokenizer = get_tokenizer("gpt2")
    best = {"prepare": float("inf"), "tiktoken": float("inf")}
    processor = dict(best)
    peak = 0.0
    for i in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        prepare(str(source), "train", tokenizer, folder / f"cache{i}")
        best["prepare"] = min(best["prepare"], time.perf_counter() - start)
        processor["prepare"] = min(processor["prepare"], time.process_time() - cpu)
        if not i:  # before tiktoken's lists
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        start, cpu = time.perf_counter(), time.process_time()
        for j in range(0, len(documents), 1000):
            tiktoken.get_encoding("gpt2").encode_ordinary_batch(documents[j : j + 1000], num_threads=num_cores())
        best["tiktoken"] = min(best["tiktoken"], time.perf_counter() - start)
        processor["tiktoken"] = min(processor["tiktoken"], time.process_time() - cpu)
    return {
        "prepare_megabytes_per_second": size / best["prepare"],
        "tiktoken_megabytes_per_second": size / best["tiktoken"],
        "ratio": best["tiktoken"] / best["prepare"],
        "ratio_of_cpu_time": processor["tiktoken"] / processor["prepare"],
        "peak_gigabytes": peak,
        "cores": num_cores(),
    }


def _write_corpus(path: pathlib.Path, megabytes: int) -> list[str]:
    """Documents of about 4 kB, as FineWeb's are, from pydocs, again and again."""
    import pyarrow
    import pyarrow.parquet

    text = "\n".join(pydocs.documents("train"))
    documents = [text[i : i + 4000] for i in range(0, len(text), 4000)]
    table = pyarrow.table({"text": documents})
    with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
        for _ in range(copies := max(1, round(megabytes * 1e6 / len(text)))):
            writer.write_table(table)
    return documents * copies


def measurements(cache: pathlib.Path) -> Iterator[tuple[str, dict[str, float]]]:
    for name, function in (("loader", loader), ("prepare", preparation)):
        folder = cache / name
        folder.mkdir()
        yield name, function(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the scratch files go (about 400 MB); a temporary folder by default")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as cache:
        for name, values in measurements(pathlib.Path(cache)):
            for key, value in values.items():
                goal = f"   (goal {GOALS[key]:,})" if key in GOALS else ""
                print(f"{name:8} {key:30} {value:12,.2f}{goal}")


if __name__ == "__main__":
    main()
