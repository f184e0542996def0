"""The rules of the house: which package may import which, and a README whose commands and snippets are right."""

import ast
import pathlib
import re
import shlex
import sys

import pytest

from dfm_jax import command_line, config
from dfm_jax.experiment import conditions

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Package -> what it may import of ours and of others; None is anything of others.
MAY_IMPORT = {
    "kernels": ({"kernels"}, {"jax", "numpy"}),
    "dfm_jax/flow": ({"dfm_jax.flow", "dfm_jax.kernels"}, {"jax", "numpy"}),
    "dfm_jax/models": (
        {"dfm_jax.models", "dfm_jax.flow", "dfm_jax.runtime.errors", "dfm_jax.runtime.files", "dfm_jax.kernels"},
        None,
    ),
    "dfm_jax/data": (
        {"dfm_jax.data", "dfm_jax.runtime.errors", "dfm_jax.runtime.files", "dfm_jax.runtime.lock"},
        None,
    ),
    "dfm_jax/checkpoints": (
        {
            "dfm_jax.checkpoints",
            "dfm_jax.models",
            "dfm_jax.runtime.errors",
            "dfm_jax.runtime.files",
            "dfm_jax.runtime.processes",
            "dfm_jax.runtime.terminal",
        },
        None,
    ),
    "dfm_jax/optim": ({"dfm_jax.optim"}, None),
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


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL) if page.exists() else []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "uniform_gkl"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        settings = command_line.parse(["main.py", f"--config=configs/{name}.py"]).config
        (run / "config.json").write_text(config.to_json(settings))
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = [line.split("#")[0] for line in lines if line.startswith(("python main.py", "python -m dfm_jax"))]
    assert len(commands) > 5 or page.name != "README.md"
    for command in commands:
        words = shlex.split(command)
        parsed = command_line.parse(words[words.index("main.py" if "main.py" in words else "dfm_jax") :])
        conditions.check(parsed.config, parsed.mode)
    text = " ".join(lines)
    scripts = re.findall(r"python (benchmarks/\S+\.py)", text)
    scripts += [f"examples/{name}.py" for name in re.findall(r"python -m examples\.(\w+)", text)]
    for script in scripts:
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch):
    """One after the other in one namespace; all but those that load a trained run, which the tests of runs do."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(page, "python"):
        if "dfm_jax.load(" not in block:
            exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text() if page.exists() else ""):
        assert (page.parent / target).exists(), target


def test_the_sections_that_the_code_cites_are_on_the_page_of_the_mathematics():
    given = set(re.findall(r"^\| ([A-F](?:\.\d)?) \|", (ROOT / "docs" / "mathematics.md").read_text(), re.MULTILINE))
    files = [f for folder in ("dfm_jax", "kernels", "tests") for f in (ROOT / folder).rglob("*.py")]
    cited = {f: set(re.findall(r"mathematics\.md,? ([A-Z](?:\.\d)?)", f.read_text())) for f in files}
    assert len(set.union(*cited.values())) > 10
    for file, sections in cited.items():
        for section in sections:
            assert any(row == section or row.startswith(f"{section}.") for row in given), (file, section)
