"""The scripts under examples/ run from the first line to the last, with little to do."""

import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest

import programs

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_example(monkeypatch, name: str, *words: str) -> int:
    """The exit status."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    try:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.slow
def test_every_path_learns_the_toy_and_is_drawn(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "runs" / "toy.png"
    words = ["--steps=200", "--samples=300", f"--output={picture}"]
    assert run_example(monkeypatch, "toy_2d.py", *words) == 0
    shares = [float(line.split("%")[0].split()[-1]) for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert len(shares) == 6 and min(shares) > 60  # half of the cells are on the board
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_sudoku_runs_and_the_margin_order_keeps_more_rules(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "runs" / "sudoku.png"
    words = ["--steps=120", "--puzzles=20", "--batch=64", f"--output={picture}"]
    assert run_example(monkeypatch, "sudoku.py", *words) == 0
    told = capsys.readouterr().out
    assert "39168 grids, 38168 to learn from; 20 puzzles" in told
    rows = [line.split() for line in told.splitlines() if line.startswith(("random", "margin"))]
    kept = {(order, int(count)): float(rules[:-1]) for order, count, _, _, rules in rows}
    assert len(kept) == 6 and kept["margin", 1] > kept["random", 1]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_digits_are_sorted_after_training_on_records(tmp_path):
    """Compiled as a user's run is: here it is the steps that take the time."""
    command = [sys.executable, "-m", "examples.sort_digits", "--steps=440", f"--folder={tmp_path}"]
    env = programs.environment(XLA_FLAGS="")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line for line in done.stdout.splitlines() if line.endswith("answers right")]
    assert [line.split(",")[:2] for line in found] == [["mask", " exact"], ["mask", " unmask"]]
    assert all(float(line.split(": ")[1].split("%")[0]) > 80 for line in found)


@pytest.mark.slow
def test_a_checkpoint_of_the_reference_is_evaluated(tmp_path, monkeypatch, capsys):
    config, tokens = tmp_path / "small.py", tmp_path / "blocks.npy"
    config.write_text(
        "from dfm_jax.configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.tokenizer.name = 'ids:37'\n"
        "    config.model.update(hidden_size=32, cond_dim=16, length=12, n_blocks=2, n_heads=2)\n"
        "    return config\n"
    )
    np.save(tokens, np.arange(48).reshape(4, 12) % 37)
    checkpoint = str(ROOT / "tests" / "fixtures" / "checkpoint_uniform.pth")
    monkeypatch.chdir(tmp_path)
    # Without a config it is not one of the published models, and nothing is left behind.
    assert run_example(monkeypatch, "evaluate_reference.py", checkpoint) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: config=(missing): vocab_embed.weight has 37 rows") and told.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    words = [checkpoint, f"--config={config}", f"--tokens={tokens}", "--time_points=8", "--sample_steps=4"]
    assert run_example(monkeypatch, "evaluate_reference.py", *words) == 0
    assert (tmp_path / "runs/checkpoint_uniform/config.json").is_file()
    lines = capsys.readouterr().out.splitlines()
    assert "nats a token" in lines[0] and "4 blocks, 8 time points" in lines[0]
    assert len(lines[-1].split()) == 12  # without a tokenizer a text is its ids
