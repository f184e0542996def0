"""Records whose answer is known: the digits of a prompt, sorted. How many answers are right?

    python -m examples.sort_digits [--source=mask|uniform] [--steps=3000] [--folder=runs/sort_digits]

A prompt is `3141592=` and its response `1123459`. A small network is trained on such records, and then answers prompts
that it has not seen, with each of the samplers. An answer is right where all digits are, and it ends there by itself.
It is a matter of minutes on two cores.
"""

# %% The records
import argparse
import json
import pathlib
import time

import numpy as np

import dfm_jax
from dfm_jax.evaluation.prompts import parse_prompt
from dfm_jax.run.load import Run

LENGTH, DIGITS = 20, (4, 8)  # tokens of a row; the fewest and the most digits of a prompt
TRAIN, ASKED = 50_000, 256  # records; prompts that are asked at the end


def write_records(file: pathlib.Path, prompts: list[str]) -> None:
    lines = [json.dumps({"question": f"{digits}=", "answer": "".join(sorted(digits))}) for digits in prompts]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw_prompts(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    sizes = random.integers(DIGITS[0], DIGITS[1] + 1, count)
    return ["".join(map(str, random.integers(0, 10, size))) for size in sizes]


# %% The run
SOURCES = {
    "mask": {"flow.source_distribution": "mask", "flow.loss_function": "masked_elbo"},
    "uniform": {"flow.source_distribution": "uniform", "flow.loss_function": "generalized_kl"},
}


def overrides(source: str, steps: int, folder: pathlib.Path) -> dict[str, object]:
    """What differs from `configs/quickstart.py`."""
    records = ":prompt=question:response=answer"
    return {
        "data.train": f"{folder / 'train.jsonl'}{records}",
        "data.valid": f"{folder / 'valid.jsonl'}{records}",
        "data.cache_dir": str(folder / "data"),
        "training.batch_size": 64,
        "training.eval_freq": steps,
        "training.snapshot": steps,
        "optim.n_iters": steps,
        "optim.warmup": min(100, steps),
        "optim.eta_min_ratio": 0.1,
        "optim.ema_decay": 0.99,
        "model.length": LENGTH,
        "model.n_blocks": 3,
        "eval.elbo": True,
        "eval.corpora": (f"{folder / 'valid.jsonl'}{records}",),
        "eval.perplexity": False,
        "logging.log_freq": max(1, steps // 10),
        **SOURCES[source],
    }


# %% The answers
def share_right(run: Run, prompts: list[str], method: str, sampler_steps: int) -> float:
    """The share of prompts whose digits come out sorted, followed by an end of text."""
    parsed = [parse_prompt(f"{digits}=", run.tokenizer, LENGTH) for digits in prompts]
    rows = run.sample_tokens(len(prompts), prompts=parsed, method=method, steps=sampler_steps, batch_size=64)
    right = 0
    for digits, row in zip(prompts, rows, strict=True):
        answer = row[len(digits) + 1 :].tolist()
        end = answer.index(run.tokenizer.eos_id) if run.tokenizer.eos_id in answer else len(answer)
        right += run.tokenizer.decode(answer[:end]) == "".join(sorted(digits)) and end < len(answer)
    return right / len(prompts)


def methods(run: Run) -> list[str]:
    """`exact`, and for the mask source `unmask`."""
    return ["exact"] if run.problem.source.mask_id is None else ["exact", "unmask"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=SOURCES, default="mask", help="law of x_0")
    parser.add_argument("--steps", type=int, default=3000, help="updates")
    parser.add_argument("--sampler_steps", type=int, default=32, help="steps of the sampler")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/sort_digits"))
    options = parser.parse_args()

    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    train = draw_prompts(TRAIN, seed=0)
    asked = [digits for digits in draw_prompts(2 * ASKED, seed=1) if digits not in set(train)][:ASKED]
    write_records(folder / "train.jsonl", train)
    write_records(folder / "valid.jsonl", asked)
    started = time.monotonic()
    changed = overrides(options.source, options.steps, folder)
    run = dfm_jax.train("quickstart", folder / options.source, overrides=changed)
    print(f"{options.source}: {run.step} updates, this call {time.monotonic() - started:.0f} s with the evaluation")
    for method in methods(run):
        share = share_right(run, asked, method, options.sampler_steps)
        print(f"{options.source}, {method}, {options.sampler_steps} steps: {share:.1%} of {len(asked)} answers right")


if __name__ == "__main__":
    main()
