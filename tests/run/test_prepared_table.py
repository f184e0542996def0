"""What `--mode=prepare` prints of a text: a table, and blocks as the network will see them."""

import pathlib

from dfm_jax import cli


def test_the_table_and_the_blocks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = pathlib.Path("text")
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text("\n\n".join(f"Line {j} of text {i}, about {i * j}." for j in range(600)))
    (folder / "bad.txt").write_bytes(b"caf\xff and more text\n" * 400)
    (folder / "empty.txt").write_text("")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    words = ["--config=small", "--mode=prepare", "--config.data.train=text", "--show=2", "--config.model.length=64"]
    assert cli.run(cli.parse(["main.py", *words])) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| data.")]
    assert [row.split()[1] for row in rows] == ["data.train", "data.valid"]
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert cells[3].startswith(("0.9", "1.0")) and int(cells[4]) >= 1  # bytes a token, repaired
    assert "1 rows without text" in cells[5] and ".png 1" in cells[5]
    assert "=== block 2 of 2, 64 tokens ===" in printed
    shown = printed.split("=== block 1 of 2, 64 tokens ===\n")[1].split("\n=== block 2")[0]
    assert "text" in shown or "more" in shown
