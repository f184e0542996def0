"""The rules of the house: which package may import which, and a README whose commands and snippets are right."""

import ast
import functools
import pathlib
import re
import shlex
import sys

import pytest

from dfm_jax import config, flow
from dfm_jax.cli import command_line
from dfm_jax.experiment import conditions

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The rooms from the ground up: a module imports what is in its own room or in one above it in this list, lazy and
# typing-only imports included. A module belongs to the room with the longest of these names that it begins with.
ROOMS = {
    "kernels": ("kernels", "dfm_jax.kernels"),
    "runtime": ("dfm_jax.runtime",),
    "flow": ("dfm_jax.flow",),
    "models": ("dfm_jax.models",),
    "data": ("dfm_jax.data",),
    "checkpoints": ("dfm_jax.checkpoints",),
    "optim": ("dfm_jax.optim",),
    "config": ("dfm_jax.config", "dfm_jax.configs", "configs"),
    "experiment": ("dfm_jax.experiment",),
    "training": ("dfm_jax.training",),
    "evaluation": ("dfm_jax.evaluation",),
    "planning": ("dfm_jax.planning", "dfm_jax.benchmarking"),
    "run": ("dfm_jax.run",),
    "api": ("dfm_jax", "dfm_jax.api"),
    "cli": ("dfm_jax.cli", "dfm_jax.__main__", "main"),
}
# The rooms of the mathematics, likewise; the package itself and the old name of `paths.base` come last.
FLOW = (
    *("tree", "random", "time", "tokens", "categorical", "schedulers", "sources", "couplings", "head", "prediction"),
    *("losses", "samplers", "paths", "path_base", ""),
)
# A folder has at most so many modules, `__init__` not counted; `configs` is a list of experiments.
MOST_MODULES = {"configs": 99}
# Room -> what it may import of others.
OTHERS = {"kernels": {"jax", "numpy"}, "flow": {"jax", "numpy"}}
STANDARD = set(sys.stdlib_module_names)


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """Every module of ours by its name; a package by that of its folder."""
    files = [f for folder in ("dfm_jax", "kernels", "configs") for f in (ROOT / folder).rglob("*.py")]
    found = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}
    return {**found, "main": ROOT / "main.py"}


@functools.cache
def imports(file: pathlib.Path) -> set[str]:
    """The names of all modules that a file imports, wherever in it; ours where there is one, of others as written."""
    ours, names = modules(), set()
    package = ".".join(file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = ".".join(filter(None, (base if node.level else "", node.module)))
            for alias in node.names:
                inside = f"{module}.{alias.name}"
                names.add(inside if inside in ours else module)
    # `dfm_jax.kernels` and `dfm_jax.configs` are other names of these folders.
    return {re.sub(r"^dfm_jax\.(kernels|configs)(?=\.)", r"\1", name) for name in names}


def room_of(module: str) -> str:
    names = [
        (len(name), room) for room, group in ROOMS.items() for name in group if f"{module}.".startswith(f"{name}.")
    ]
    return max(names)[1]


def edges() -> list[tuple[str, str]]:
    ours = modules()
    return [(name, other) for name, file in ours.items() for other in sorted(imports(file)) if other in ours]


def test_rooms_import_downwards():
    order = list(ROOMS)
    upwards = {(a, b) for a, b in edges() if order.index(room_of(b)) > order.index(room_of(a))}
    assert upwards == set()


def test_the_mathematics_imports_downwards():
    def place(module: str) -> int:
        return FLOW.index((module.split(".") + [""])[2])

    inside = [(a, b) for a, b in edges() if a.startswith("dfm_jax.flow") and b.startswith("dfm_jax.flow")]
    assert len(inside) > 50
    assert [edge for edge in inside if place(edge[1]) > place(edge[0])] == []


@pytest.mark.parametrize("room", OTHERS)
def test_the_ground_floor_imports_little_of_others(room):
    ours = modules()
    for name, file in ours.items():
        for other in imports(file) if room_of(name) == room else ():
            assert other in ours or other.split(".")[0] in STANDARD | OTHERS[room], f"{file}: {other}"


def test_there_are_no_circles():
    after: dict[str, set[str]] = {name: set() for name in modules()}
    for name, other in edges():
        after[name].add(other)

    def reached(start: str) -> set[str]:
        found, ahead = set(), [start]
        while ahead:
            for other in after[ahead.pop()] - found:
                found.add(other)
                ahead.append(other)
        return found

    far = {name: reached(name) for name in after}
    assert {name for name in after if name in far[name]} == set()


def test_the_root_of_the_package_has_no_loose_modules():
    names = {file.stem for file in (ROOT / "dfm_jax").glob("*.py")}
    assert names == {"__init__", "__main__", "api", "kernels", "configs"}


def test_no_folder_is_crowded():
    folders: dict[str, int] = {}
    for file in modules().values():
        if file.name != "__init__.py":
            folder = str(file.parent.relative_to(ROOT))
            folders[folder] = folders.get(folder, 0) + 1
    assert {folder: n for folder, n in folders.items() if n > MOST_MODULES.get(folder, 14)} == {}


def test_nobody_but_the_paths_asks_of_which_class_a_path_is():
    classes = {"Path", "GeneralPath", "TokenSchedulePath"}
    classes |= {name for name in vars(flow) if name.endswith("ProbPath")}
    files = [f for folder in ("dfm_jax", "examples", "benchmarks") for f in (ROOT / folder).rglob("*.py")]
    for file in files:
        if "flow/paths" in str(file):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                asked = {ast.unparse(n) for n in ast.walk(node.args[1]) if isinstance(n, ast.Name | ast.Attribute)}
                assert not {n.split(".")[-1] for n in asked if n.split(".")[0] != "pathlib"} & classes, (file, asked)


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
