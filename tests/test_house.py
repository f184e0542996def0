"""The rules of the house: which package may import which, and a README whose commands and snippets are right."""

import ast
import pathlib
import re
import shlex
import sys

import pytest

from dfm_jax import command_line, config

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Package -> what it may import of ours and of others; None is anything of others.
MAY_IMPORT = {
    "kernels": ({"kernels"}, {"jax", "numpy"}),
    "dfm_jax/flow": ({"dfm_jax.flow"}, {"jax", "numpy"}),
    "dfm_jax/models": ({"dfm_jax.models", "dfm_jax.flow", "dfm_jax.errors", "dfm_jax.files", "dfm_jax.kernels"}, None),
    "dfm_jax/data": ({"dfm_jax.data", "dfm_jax.errors", "dfm_jax.files"}, None),
}
STANDARD = set(sys.stdlib_module_names)


def imports(file: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:  # a relative one stays in its package
            # `from dfm_jax import flow` imports dfm_jax.flow.
            inside = node.module == "dfm_jax"
            names |= {f"dfm_jax.{alias.name}" for alias in node.names} if inside else {node.module}
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    ours, others = MAY_IMPORT[package]
    for file in (ROOT / package).rglob("*.py"):
        for name in imports(file):
            top = name.split(".")[0]
            if top in ("dfm_jax", "kernels", "configs", "main", "tests", "benchmarks"):
                assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in ours), f"{file}: {name}"
            elif others is not None and top not in STANDARD:
                assert top in others, f"{file}: {name}"


def test_nothing_imports_main():
    for folder in ("dfm_jax", "kernels", "configs"):
        for file in (ROOT / folder).rglob("*.py"):
            # __main__.py is main.py under another name.
            assert file.name == "__main__.py" or "main" not in imports(file), file


def readme(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_commands_of_the_readme_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "uniform_gkl"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        settings = command_line.parse(["main.py", f"--config=configs/{name}.py"]).config
        (run / "config.json").write_text(config.to_json(settings))
    lines = [line for block in readme("bash") for line in block.splitlines()]
    commands = [line.split("#")[0] for line in lines if line.startswith("python main.py")]
    assert len(commands) > 5
    for command in commands:
        config.check(command_line.parse(shlex.split(command)[1:]).config)


def test_the_mathematics_of_the_readme_runs():
    (snippet,) = [block for block in readme("python") if "from dfm_jax import flow" in block]
    exec(compile(snippet, "README.md", "exec"), {})
