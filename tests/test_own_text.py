"""The pages for one's own text: the table of sizes is what its script prints, and the commands of own_text.md run."""

import importlib.util
import pathlib
import re
import shlex
import sys

import pytest

from dfm_jax.__main__ import main

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_table_of_sizes_and_cards_is_what_the_script_prints(monkeypatch):
    path = ROOT / "benchmarks" / "sizes_and_cards.py"
    spec = importlib.util.spec_from_file_location("sizes_and_cards", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.table() in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    # 6 operations a parameter and token, and attention: an hour of one H100 at 40 % for the 170 M.
    row = next(row for row in script.rows() if "uniform_gkl" in row[0] and row[1] == "1 x H100 80 GB")
    hours = float(row[4].split(" / ")[1])
    assert hours == pytest.approx(6 * 0.14e9 * 1e9 / (0.4 * 989.4e12) / 3600, rel=0.15)


@pytest.mark.slow
def test_every_command_of_the_page_runs_on_a_small_text(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "own_text.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- ci:own_text -->\n```bash\n(.*?)```\n<!-- ci:end -->", page, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line]
    assert len(commands) == 6
    monkeypatch.chdir(tmp_path)
    topics = ("the path", "a token", "the noise", "this step", "no mask")
    lines = [
        f"{topics[i % 5]} goes to {topics[i * i % 5]} in {i} parts, and {topics[i // 7 % 5]} stays." for i in range(200)
    ]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "main.py"]
        monkeypatch.setattr(sys, "argv", words[1:])
        assert main() == 0, command
    assert "=== block 2 of 2" in capsys.readouterr().out
    run = tmp_path / "runs" / "mine"
    for file in ("index.html", "eval/report.md", "config.json", "run.json", "checkpoints/best.json"):
        assert (run / file).is_file(), file
    assert list((run / "export").glob("*.safetensors"))
