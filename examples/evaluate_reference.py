"""A checkpoint of the PyTorch text example: import it, bound the likelihood of text under it, and let it write.

    python -m examples.evaluate_reference checkpoint.pth [--workdir=runs/checkpoint] [--blocks=16] [--time_points=64]

Without --config the checkpoint is taken for one of the published models (GPT-2 tokens, sequences of 1024). For another
model name a config that has its length, tokenizer and source. The blocks are the first ones of the corpus that the
config evaluates (WikiText-103 validation), or those of --tokens=FILE.npy, integers of shape (n, length). The whole
evaluation, with 1024 time points, generation and GPT-2 as the judge, is
`python main.py --mode=eval --workdir=runs/checkpoint`.
"""

import argparse
import pathlib
import sys

import numpy as np

import dfm_jax
from dfm_jax import cli
from dfm_jax.cli import command_line
from dfm_jax.experiment import streams as corpora
from dfm_jax.runtime.errors import in_one_line


def count(word: str) -> int:
    if int(word) < 0:
        raise argparse.ArgumentTypeError(f"{word}: expected 0, 1, 2, ...")
    return int(word)


def positive(word: str) -> int:
    if count(word) == 0:
        raise argparse.ArgumentTypeError(f"{word}: expected 1, 2, ...")
    return int(word)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--config", help="a file under configs/; the published recipe if not given")
    parser.add_argument("--workdir", help="the run that it becomes; named as the file if not given")
    parser.add_argument("--tokens", help="a .npy file of blocks to evaluate on")
    parser.add_argument("--blocks", type=positive, default=16)
    parser.add_argument("--time_points", type=positive, default=64)
    parser.add_argument("--sample_steps", type=count, default=64, help="steps of the sampler; 0 = write nothing")
    args = parser.parse_args()

    # The file becomes a run like any other.
    workdir = pathlib.Path(args.workdir or pathlib.Path("runs") / pathlib.Path(args.checkpoint).stem)
    if (workdir / "config.json").exists():
        print(f"{workdir} is a run already: {args.checkpoint} is not read again", file=sys.stderr)
    else:
        words = ["--mode=import", f"--from={args.checkpoint}", f"--workdir={workdir}"]
        cli.run(command_line.parse(["main.py", *words, *([f"--config={args.config}"] if args.config else [])]))
    run = dfm_jax.load(workdir)

    if args.tokens:
        blocks = np.load(args.tokens)[: args.blocks]
    else:
        stream = corpora.get_stream(run.config, "eval.corpora", run.tokenizer, run.config.eval.corpora[0])
        source = stream.blocks(run.config.model.length)
        blocks = np.stack([np.asarray(source[i]) for i in range(min(args.blocks, len(source)))])
    for name, result in run.likelihood(blocks, time_points=args.time_points).items():
        print(
            f"{name}, {result.process}: {result.nats_per_token:.4f} +- {result.stderr:.4f} nats a token, "
            f"perplexity {result.perplexity:.2f}, {result.blocks} blocks, {result.time_points} time points"
        )
    if args.sample_steps:
        print(run.sample(num=1, steps=args.sample_steps)[0])
    return 0


if __name__ == "__main__":
    sys.exit(in_one_line(main))
