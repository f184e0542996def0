"""One self-contained HTML page per sample set, which plays the samples through time."""

import html
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def histories(frames: np.ndarray) -> list[list[tuple[int, int]]]:
    """For each position of frames (F, L): (frame, token) of the first state and of every change."""
    changed = np.concatenate([np.ones_like(frames[:1], bool), frames[1:] != frames[:-1]])
    return [[(int(f), int(frames[f, i])) for f in np.flatnonzero(changed[:, i])] for i in range(frames.shape[1])]


def render_page(
    frames: np.ndarray,
    times: Sequence[float],
    steps: Sequence[int],
    *,
    show: Callable[[int], str],
    title: str,
    settings: Mapping[str, object],
    mask_id: int | None = None,
    eos_id: int | None = None,
    fixed: np.ndarray | None = None,
) -> str:
    """The HTML page of a sample set. It needs no network and no other file.

    Args:
        frames: (F, N, L) token ids, the states of N samples at F times, with the first and the last.
        times: (F,) times in [0, 1], increasing.
        steps: (F,) the number of sampler steps before each frame.
        show: token id -> its text; not called with mask_id.
        title: the heading.
        settings: of the sampler, printed under the heading.
        mask_id: drawn as a blank.
        eos_id: drawn as a badge.
        fixed: (N, L) bool, positions of a prompt; drawn underlined.

    Raises:
        ValueError: shapes do not agree.
    """
    count, samples, length = frames.shape
    if len(times) != count or len(steps) != count:
        raise ValueError(f"times of {len(times)} and steps of {len(steps)}: expected {count}, one per frame")
    if fixed is not None and fixed.shape != (samples, length):
        raise ValueError(f"fixed of shape {fixed.shape}: expected {(samples, length)}")
    used = np.unique(frames)
    index = {int(token): number for number, token in enumerate(used)}
    data = {
        "title": title,
        "settings": {name: str(value) for name, value in settings.items()},
        "times": [round(float(t), 6) for t in times],
        "steps": [int(step) for step in steps],
        "tokens": ["\u2591" if token == mask_id else show(int(token)) for token in used],
        "mask": index.get(-1 if mask_id is None else mask_id, -1),
        "end": index.get(-1 if eos_id is None else eos_id, -1),
        "samples": [
            {
                "history": [
                    [number for f, token in history for number in (f, index[token])]
                    for history in histories(frames[:, n])
                ],
                "fixed": [] if fixed is None else np.flatnonzero(fixed[n]).tolist(),
            }
            for n in range(samples)
        ],
    }
    # The text of a token may contain the end tag of the script element.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = importlib.resources.files("dfm_jax.evaluation.report").joinpath("page.html").read_text("utf-8")
    before, after = template.split("__DATA__")
    return before.replace("__TITLE__", html.escape(title)) + text + after
