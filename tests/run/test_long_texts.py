"""Texts in blocks: what each block sees, texts longer than the network's rows, pieces that join to the text."""

import json
import pathlib
import types

import numpy as np
import pytest

import dfm_jax
from dfm_jax import flow
from dfm_jax.data import get_tokenizer
from dfm_jax.evaluation import long_texts
from dfm_jax.evaluation.generation import Samples
from dfm_jax.evaluation.long_texts import Blocks
from dfm_jax.runtime.errors import UsageError

BYTES = get_tokenizer("bytes")
MASK, ROW = 257, 8
TINY = {
    "tokenizer.name": "bytes", "data.num_workers": 0, "model.hidden_size": 16, "model.cond_dim": 8, "model.length": 16,
    "model.n_blocks": 1, "model.n_heads": 2, "training.batch_size": 4, "training.eval_freq": 0, "optim.n_iters": 2,
    "optim.warmup": 1, "eval.elbo": False, "eval.perplexity": False, "flow.source_distribution": "mask",
    "flow.sampling_steps": 4, "sampling.num": 2, "sampling.batch_size": 2,
}  # fmt: skip


class Counting:
    """A generator whose new tokens are 1, 2, 3, ...; it keeps the prompts that it was given."""

    def __init__(self, row=ROW, mask_id=MASK):
        self.settings = types.SimpleNamespace(length=row)
        self.problem = types.SimpleNamespace(source=types.SimpleNamespace(mask_id=mask_id))
        self.asked, self.count = [], 0

    def __call__(self, model, num, *, prompts, start):
        assert num == 1
        self.asked.append((prompts[0] if prompts else None, start))
        row = np.zeros(self.settings.length, np.int32) if not prompts else prompts[0].tokens.copy()
        free = np.ones(len(row), bool) if not prompts else ~prompts[0].fixed
        row[free] = self.count + 1 + np.arange(free.sum())
        self.count += int(free.sum())
        one = np.ones(1, np.int32)
        yield Samples(row[None], flow.Evaluations(one, one, one, one), None)


def text(generator, given, blocks, index=0):
    return [new.tolist() for new, _ in long_texts.generate(generator, None, np.array(given, np.int32), blocks, index)]


def test_each_block_sees_what_is_before_it_and_masks_after_it():
    generator = Counting()
    assert text(generator, [50, 51], Blocks.of(14, 3, ROW, True), index=5) == [
        [1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
        [10, 11, 12],
    ]
    rows = [(prompt.tokens.tolist(), prompt.fixed.tolist()) for prompt, _ in generator.asked]
    assert rows[0] == ([50, 51, 0, 0, 0, MASK, MASK, MASK], [True] * 2 + [False] * 3 + [True] * 3)
    assert rows[1] == ([50, 51, 1, 2, 3, 0, 0, 0], [True] * 5 + [False] * 3)
    assert rows[3] == ([5, 6, 7, 8, 9, 0, 0, 0], [True] * 5 + [False] * 3)
    assert [start for _, start in generator.asked] == [5 + n * long_texts.MOST_TEXTS for n in range(4)]


def test_rows_begin_with_their_first_token():
    generator = Counting()
    text(generator, [], Blocks.of(12, 4, ROW, True, first=99))
    assert [p.tokens[0] for p, _ in generator.asked] == [0, 1, 99]
    with pytest.raises(UsageError, match="block = 7: expected 1 to 6 tokens, for rows of 8"):
        Blocks.of(12, 7, ROW, True, first=99)


def test_a_stop_token_ends_the_text():
    generator = Counting()
    assert text(generator, [50], Blocks.of(100, 4, ROW, True, stop=6)) == [[1, 2, 3, 4], [5, 6]]
    assert len(generator.asked) == 2


def test_one_block_is_a_row_of_any_source():
    generator = Counting(row=5, mask_id=None)
    assert text(generator, [], Blocks.of(5, None, ROW, False)) == [[1, 2, 3, 4, 5]]
    assert generator.asked[0][0] is None
    with pytest.raises(UsageError, match="length = 12: expected at most 8, a row of the network, or the mask source"):
        Blocks.of(12, None, ROW, False)
    with pytest.raises(UsageError, match="block = 3: expected 8, the whole text, or the mask source"):
        Blocks.of(8, 3, ROW, False)
    for length, line in ((0, "length = 0: expected 1 token or more"), (10**9, "length = 1000000000: expected at most")):
        with pytest.raises(UsageError, match=line):
            Blocks.of(length, None, ROW, True)


def test_pieces_end_where_a_character_does():
    word = np.frombuffer("né€!".encode(), np.uint8).astype(np.int32)
    parts = [word[:2], word[2:4], word[4:6], np.append(word[6:], BYTES.eos_id)]
    spent = flow.Evaluations(*[np.ones(1, np.int32)] * 4)
    drawn = long_texts.Text(((part, spent) for part in parts), BYTES, np.array([65, 66]), stop=BYTES.eos_id)
    assert list(drawn) == ["ABn", "é", "€", "!"]
    assert drawn.tokens.tolist() == [65, 66, *word.tolist(), BYTES.eos_id] and drawn.spent["trunk"] == 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    (folder / "text.txt").write_text("all work and no play makes a text. " * 200)
    own = {"data.train": f"{folder}/text.txt", "data.valid": f"{folder}/text.txt", "data.cache_dir": f"{folder}/data"}
    return dfm_jax.train("quickstart", folder / "run", overrides=TINY | own)


@pytest.mark.slow
def test_a_run_streams_texts_longer_than_its_rows(run):
    pieces = list(run.stream("ab", length=40, block=8, steps=2, seed=3))
    assert len(pieces) > 1 and pieces[0].startswith("ab")
    whole = run.stream("ab", length=40, block=8, steps=2, seed=3)
    assert "".join(whole) == "".join(pieces) and whole.tokens.shape == (40,) and whole.spent["trunk"] >= 5
    texts = run.sample(2, prompt="ab", length=40, block=8, steps=2, seed=3)
    assert texts[0] == "".join(pieces) and texts[1] != texts[0]
    assert len(run.stream(length=16).__next__()) > 0
    (short,) = run.sample(1, length=np.int64(12), block=8, steps=2)
    assert short == "".join(run.stream(length=12, block=8, steps=2))
    for options, line in {
        "length": ({"length": 0}, "length = 0: expected"),
        "block": ({"length": 40, "block": 16}, "block = 16: expected 1 to 15 tokens, for rows of 16"),
        "prompt": ({"length": 40, "prompt": "x" * 40}, "40 tokens: expected fewer than length = 40"),
        "long": ({"length": 40, "prompt": "x" * 41}, "41 tokens: expected at most 40"),
        "gap": ({"length": 40, "prompt": "a<gap:3>b"}, "expected a beginning, without gaps"),
        "guided": ({"length": 40, "guidance": 2.0}, "guidance = '2.0': expected 1, or a prompt"),
        "guided by none": (
            {"length": 8, "block": 4, "guidance": 2, "prompt": ""},
            "guidance = '2': expected 1, or a prompt",
        ),
    }.values():
        with pytest.raises(ValueError, match=line):
            run.stream(**options)


@pytest.mark.slow
def test_the_command_shows_and_writes_long_texts(run, capsys, tmp_path):
    from dfm_jax import cli

    words = ["main.py", "--mode=sample", f"--workdir={run.folder}", f"--output={tmp_path}", "--prompt=ab"]
    assert cli.run(cli.parse([*words, "--length=24", "--block=8"])) == 0
    printed = capsys.readouterr().out
    (file,) = pathlib.Path(tmp_path, "samples").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 and all(line["text"] in printed and len(line["tokens"]) == 24 for line in lines)
    assert lines[0]["settings"]["block"] == 8 and lines[0]["evaluations"]["trunk"] > 0
    with pytest.raises(UsageError, match="block = 8: expected --length=N too"):
        cli.run(cli.parse([*words, "--block=8"]))
    for more in ([], ["--length=24"]):  # an empty prompt says nothing that could guide
        empty = [word for word in words if "prompt" not in word] + ["--prompt=", "--config.sampling.guidance=2", *more]
        with pytest.raises(UsageError, match=r"config.sampling.guidance = 2: expected a prompt or gaps, or 1"):
            cli.run(cli.parse(empty))
