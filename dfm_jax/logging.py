"""What a run says: lines on the terminal, `metrics.jsonl`, TensorBoard, Weights & Biases."""

import sys

from tqdm import tqdm


def note(line: str) -> None:
    """Writes a line to stderr, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stderr)


def warn(line: str) -> None:
    """As `note`, marked as a warning."""
    note(f"warning: {line}")
