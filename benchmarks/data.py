"""Speed of the data path: `python -m benchmarks.data`.

Loader: blocks of 1024 tokens per second through the training pipeline, on one core (goal: 15 000). Preparation: text
per second against tiktoken alone on the same cores (goal: 80 %), and the most memory that it took (goal: 1.5 GB).
Reader: processor time and memory for texts that can hardly be cut. Checksums: the cost of comparing each block's.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dfm_jax.data import get_tokenizer, open_stream, prepare, train_batches
from dfm_jax.data.encoding import num_cores
from dfm_jax.data.identity import Memory
from dfm_jax.data.manifest import Manifest
from dfm_jax.data.shards import ShardFiles, ShardWriter
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


# One line without a blank, the commonest line ends, and words without end: what a text has that cannot be cut anywhere.
TEXTS = {
    "one line": "lorem,ipsum;dolor:sit-amet.consectetur",
    "CRLF words": "lorem\r\nipsum\r\ndolor\r\n",
    "LF words": "lorem\nipsum\ndolor\n",
    "one letter": "a",
    "blanks": " ",
}
READER = """
import resource, sys, time
from dfm_jax.data import get_tokenizer
from dfm_jax.data.rows import Rules
from dfm_jax.data.sources import local
name, path = sys.argv[1:]
cut = get_tokenizer(name).cut
cut("x y " * 30_000 + "\xe9" * 9)  # what is made once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(unit,) = local.units(local.find(path, "").paths, Rules(), "")
start, longest = time.process_time(), 0
for row in unit.rows(0, cut):
    longest = max(longest, len(row.text))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.process_time() - start, (after - before) / 1e3, longest / 1e6)
"""


def reader(folder: pathlib.Path, *, sizes: tuple[int, ...] = (8, 32, 128)) -> dict[str, float]:
    """Processor seconds and additional megabytes of memory to read a document of TEXTS in pieces, by size in MB."""
    found = {}
    path = folder / "text.txt"
    for megabytes in sizes:
        for name, words in TEXTS.items():
            path.write_text(words * (megabytes * 1_000_000 // len(words)), newline="")
            for tokenizer in ("bytes", "gpt2"):
                words_of = [sys.executable, "-c", READER, tokenizer, str(path)]
                output = subprocess.run(words_of, check=True, capture_output=True, text=True).stdout
                seconds, memory, longest = map(float, output.split())
                label = f"{tokenizer}, {name}, {megabytes} MB"
                found |= {f"{label}: s": seconds, f"{label}: MB": memory, f"{label}: longest piece MB": longest}
    path.unlink()
    return found


def checksums(folder: pathlib.Path, *, megabytes: int = 64) -> dict[str, float]:
    """What it costs to compare every block with its checksum, and to know a file by its contents."""
    writer = ShardWriter(folder, "0.npy", "<u2")
    tokens = np.random.default_rng(0).integers(0, 50257, megabytes << 19, np.uint16)
    writer.write(tokens)
    files = ShardFiles(folder, [writer.close()], "<u2")
    starts = np.random.default_rng(1).integers(0, len(tokens) - LENGTH, 20_000).tolist()

    def microseconds(read: Callable[[int], object]) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            for i in starts:
                read(i)
            best = min(best, time.perf_counter() - start)
        return best / len(starts) * 1e6

    mapped = np.load(folder / "0.npy", mmap_mode="r")
    start = time.perf_counter()
    Memory().hash(folder / "0.npy")
    hashed = time.perf_counter() - start
    return {
        "microseconds_a_block_checked": microseconds(lambda i: files.read(i, i + LENGTH).copy()),
        "microseconds_a_block_unchecked": microseconds(lambda i: np.array(mapped[i : i + LENGTH])),
        "gigabytes_hashed_per_second": (megabytes << 20) / 1e9 / hashed,
    }


BENCHMARKS = {"loader": loader, "prepare": preparation, "reader": reader, "checksums": checksums}


def measurements(cache: pathlib.Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    for name in names:
        folder = cache / name
        folder.mkdir()
        yield name, BENCHMARKS[name](folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the scratch files go (about 400 MB); a temporary folder by default")
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), choices=list(BENCHMARKS))
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=words.folder) as cache:
        for name, values in measurements(pathlib.Path(cache), words.only):
            for key, value in values.items():
                goal = f"   (goal {GOALS[key]:,})" if key in GOALS else ""
                print(f"{name:9} {key:45} {value:12,.2f}{goal}", flush=True)


if __name__ == "__main__":
    main()
