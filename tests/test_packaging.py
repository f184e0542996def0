"""What is installed: every package, under dfm_jax alone, and a program that answers --help."""

import pathlib
import subprocess
import sys
import tomllib

from dfm_jax.__main__ import main
from dfm_jax.cli import command_line

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_installed_under_dfm_jax():
    packages = {file.parent for folder in ("dfm_jax", "kernels", "configs") for file in (ROOT / folder).rglob("*.py")}
    names = {".".join(("dfm_jax", *p.relative_to(ROOT).parts)).replace("dfm_jax.dfm_jax", "dfm_jax") for p in packages}
    assert set(SETUP["packages"]) == names
    assert SETUP["package-dir"] == {f"dfm_jax.{name}": name for name in ("kernels", "configs")}


def test_the_data_files_are_installed():
    patterns = SETUP["package-data"]
    known = {
        file for name, globs in patterns.items() for g in globs for file in ROOT.joinpath(*name.split(".")).glob(g)
    }
    files = {f for f in (ROOT / "dfm_jax").rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert files == known


def test_the_folders_of_the_checkout_are_what_the_package_imports():
    import configs.base
    import dfm_jax.kernels.vocab_head.types as by_path
    import kernels.vocab_head.types
    from dfm_jax import configs as bundled
    from dfm_jax import kernels as ours
    from dfm_jax.kernels import vocab_head
    from dfm_jax.kernels.attention import rotary

    assert ours is kernels and ours.vocab_head is vocab_head is kernels.vocab_head
    assert by_path is kernels.vocab_head.types and by_path.__spec__.name == "kernels.vocab_head.types"
    assert rotary is kernels.attention.rotary
    assert bundled.base is configs.base


def test_the_types_of_the_head_need_no_pallas():
    code = "import sys, dfm_jax.flow, dfm_jax.kernels; print([m for m in sys.modules if 'pallas' in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_config_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("uniform_gkl", "configs/uniform_gkl.py"):
        assert command_line.find_config(name) == ROOT / "configs" / "uniform_gkl.py"
    mine = tmp_path / "configs" / "uniform_gkl.py"
    mine.parent.mkdir()
    mine.write_text("")
    assert command_line.find_config("configs/uniform_gkl.py").resolve() == mine  # what is here comes first


def test_help_names_every_mode_and_flag(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py", "--help"])
    assert main() == 0
    text = capsys.readouterr().out
    for name in (*command_line.MODES, *command_line.OPERANDS, *command_line.SWITCHES, *command_line.EVERY_MODE):
        assert name in text
