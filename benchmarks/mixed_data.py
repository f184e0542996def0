"""Speed of records and mixtures, and whether preparing stays flat: `python -m benchmarks.mixed_data`.

Loader: rows of 1024 tokens per second of processor time, of a stream of text, of records and of a mixture of both, in
turns, so that whatever else the machine does meets all three. Preparing: tokens per second and the most memory for
generated text of two sizes, each in a process of its own, and the tokenizer alone on the same text.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction

import numpy as np

from dfm_jax.data import Mixture, get_tokenizer, open_stream, prepare, train_batches

LENGTH, BATCH = 1024, 64


def write_text(file: pathlib.Path, megabytes: float, seed: int = 0) -> None:
    """JSON lines with `text`, `q` and `a`: words with the frequencies of a natural text."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(random.choice(letters, random.integers(1, 10))) for _ in range(20_000)])
    ranks = np.minimum(random.zipf(1.2, 1 << 20) - 1, len(words) - 1)
    written = 0
    with file.open("w") as lines:
        while written < megabytes * 1e6:
            start, size = int(random.integers(0, len(ranks) - 700)), int(random.integers(20, 400))
            text = " ".join(words[ranks[start : start + size]])
            cut = len(text) // 4
            written += lines.write(json.dumps({"text": text, "q": text[:cut], "a": text[cut:]}) + "\n")


def loader(folder: pathlib.Path, *, rounds: int, batches: int, megabytes: float = 40) -> dict[str, dict[str, float]]:
    """Rows per second of processor time: the median of the rounds, and each as a share of the stream's."""
    file = folder / "text.jsonl"
    write_text(file, megabytes)
    stream = open_stream(prepare(str(file), "train", "bytes", folder))
    records = open_stream(prepare(f"{file}:prompt=q:response=a", "train", "bytes", folder))
    mixture = Mixture(("stream", "records"), (stream, records), (Fraction(1), Fraction(1)))
    loaders = {
        name: train_batches(corpus, length=LENGTH, batch_size=BATCH, seed=0)
        for name, corpus in (("stream", stream), ("records", records), ("mixture", mixture))
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, made in loaders.items():
            started = time.process_time()
            for _ in range(batches):
                next(made)
            if number:  # the first round reads the files and compares their checksums
                rates[name].append(batches * BATCH / (time.process_time() - started))
    return {
        name: {
            "rows_per_cpu_second": statistics.median(found),
            "of_stream": statistics.median(a / b for a, b in zip(found, rates["stream"], strict=True)),
        }
        for name, found in rates.items()
    }


def prepare_once(file: str, folder: str) -> dict[str, float]:
    """Prepares a file in this process: tokens per second, in the first and last third of its time too, and memory."""
    import tiktoken

    tokenizer = get_tokenizer("gpt2")
    tokenizer.encode_batch(["start"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seen: list[tuple[float, int]] = [(0.0, 0)]
    started = time.process_time()
    prepared = prepare(
        file, "train", tokenizer, folder, progress=lambda p: seen.append((time.process_time() - started, p.tokens))
    )
    seconds, tokens = time.process_time() - started, open_stream(prepared).num_tokens
    times, counts = zip(*seen, strict=True)
    thirds = [float(np.interp(seconds * share, times, counts)) for share in (1 / 3, 2 / 3)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    lines = pathlib.Path(file).read_text().splitlines()[:5000]
    texts = [json.loads(line)["text"] for line in lines]
    alone = tiktoken.get_encoding("gpt2")
    started = time.process_time()
    count = sum(len(alone.encode_ordinary(text)) for text in texts)
    return {
        "megatokens": tokens / 1e6,
        "tokens_per_cpu_second": tokens / seconds,
        "first_third": thirds[0] / (seconds / 3),
        "last_third": (tokens - thirds[1]) / (seconds / 3),
        "tiktoken_tokens_per_cpu_second": count / (time.process_time() - started),
        "peak_gigabytes": peak,
        "more_than_before_gigabytes": peak - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[50, 200], help="sizes of the generated text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=100, help="of each loader in a round")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "FOLDER"), help="prepare one file, as the others are")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(prepare_once(*options.one)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for loaded, figures in loader(folder, rounds=options.rounds, batches=options.batches).items():
            print(f"loader, {loaded}: " + ", ".join(f"{key} {value:,.3g}" for key, value in figures.items()))
        for megabytes in options.megabytes:
            file = folder / f"{megabytes:g}.jsonl"
            write_text(file, megabytes)
            command = [
                sys.executable,
                "-m",
                "benchmarks.mixed_data",
                "--one",
                str(file),
                str(folder / f"{megabytes:g}"),
            ]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"prepare, {megabytes:g} MB: " + ", ".join(f"{key} {value:,.4g}" for key, value in found.items()))


if __name__ == "__main__":
    main()
