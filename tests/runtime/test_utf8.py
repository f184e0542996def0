"""Consoles, pipes and locales that do not know every character."""

import ast
import io
import pathlib
import subprocess
import sys

import pytest

import programs
from dfm_jax.runtime import files, utf8

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TEXT = "2.61 ± 0.02 | 한국어 \udced\udc95"  # a report, a text, and a file name that is cut in the middle of a letter


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"2.61 +- 0.02 | ??? \xed\x95"),
        ("latin-1", b"2.61 \xb1 0.02 | ??? \xed\x95"),
        ("utf-8", "2.61 ± 0.02 | 한국어 ".encode() + b"\xed\x95"),
    ],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_of_any_encoding_takes_any_text(monkeypatch, encoding, expected, name):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding))
    with pytest.raises(UnicodeEncodeError):
        getattr(sys, name).write(TEXT)
    utf8.print_anything()
    getattr(sys, name).write(TEXT)
    getattr(sys, name).flush()
    assert raw.getvalue().endswith(expected)


def test_a_file_is_valid_utf8_whatever_its_text(tmp_path):
    files.write_atomically(tmp_path / "report.md", TEXT)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "2.61 ± 0.02 | 한국어 \ufffd"
    files.write_atomically(tmp_path / "report.md", "\ud800 ± ")  # half a pair: no character, no file name either
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == "? ± "


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C"}, {"LC_ALL": "POSIX"}])
def test_the_program_says_what_is_wrong_on_an_ascii_pipe(tmp_path, changes):
    environment = programs.environment(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", **changes)
    words = [sys.executable, str(ROOT / "main.py"), "--mode=eval", "--compare=run ± 한국어"]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=240, check=False)
    assert result.returncode == 1 and b"Traceback" not in result.stderr
    assert b"error: compare = run " in result.stderr and result.stderr.rstrip().endswith(b"')")


def test_text_is_read_and_written_as_utf8_whatever_the_locale():
    """`open`, `read_text` and the like take the locale's encoding where none is named."""
    for folder in ("dfm_jax", "kernels"):
        for file in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call):
                    assert not _locale(call), f"{file}:{call.lineno}"


def _locale(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {keyword.arg for keyword in call.keywords}
    if name in ("read_text", "write_text"):
        return "encoding" not in keywords and len(call.args) < (1 if name == "read_text" else 2)
    if name == "run" and "text" in keywords:
        return "encoding" not in keywords
    if not (name == "fdopen" or (name == "open" and isinstance(call.func, ast.Name))):
        return False
    mode = next((k.value for k in call.keywords if k.arg == "mode"), call.args[1] if len(call.args) > 1 else None)
    return "encoding" not in keywords and not (isinstance(mode, ast.Constant) and "b" in mode.value)
