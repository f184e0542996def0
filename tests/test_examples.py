"""The scripts under examples/ run from the first line to the last, with little to do."""

import pathlib
import runpy
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_example(monkeypatch, name: str, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_every_path_learns_the_toy_and_is_drawn(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "toy.png"
    run_example(monkeypatch, "toy_2d.py", "--steps=200", "--samples=300", f"--output={picture}")
    shares = [float(line.split("%")[0].split()[-1]) for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert len(shares) == 6 and min(shares) > 60  # half of the cells are on the board
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_of_the_reference_is_evaluated(tmp_path, monkeypatch, capsys):
    config, tokens = tmp_path / "small.py", tmp_path / "blocks.npy"
    config.write_text(
        "from dfm_jax.configs import base\n"
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    config.model.update(hidden_size=32, cond_dim=16, length=12, n_blocks=2, n_heads=2)\n"
        "    return config\n"
    )
    np.save(tokens, np.arange(48).reshape(4, 12) % 37)
    run_example(
        monkeypatch, "evaluate_reference.py", str(ROOT / "tests" / "fixtures" / "checkpoint_uniform.pth"),
        f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--tokens={tokens}", "--time_points=8",
        "--sample_steps=4",
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert "nats a token" in lines[0] and "4 blocks, 8 time points" in lines[0]
    assert len(lines[-1].split()) == 12  # without a tokenizer a text is its ids
