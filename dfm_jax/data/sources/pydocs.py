"""The embedded corpus `pydocs`: the documentation that ships with every CPython.

A document is one topic of `pydoc_data.topics`, or the docstrings of one top-level module of the standard library,
in the order of the source, read by parsing the source without importing it. It differs between Python versions.
"""

import ast
import functools
import hashlib
import pathlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator

VERSION = f"{sys.implementation.name} {sys.version}"


def documents(split: str) -> Iterator[str]:
    """The documents of `split` ('train': about 95 %, 'valid': the rest), in the order of their names."""
    for name, text in _all_documents():
        if (split == "valid") == _held_out(name):
            yield text


def _held_out(name: str) -> bool:
    """Decided by the name alone, so that a document stays on its side when others come or go."""
    return hashlib.sha256(name.encode()).digest()[0] % 20 == 0


@functools.cache
def _all_documents() -> list[tuple[str, str]]:
    """Name and text; kept, since both splits are asked for and the sources take a second to parse."""
    from pydoc_data.topics import topics

    documents = [(f"topics/{name}", topics[name].strip() + "\n") for name in sorted(topics)]
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = "\n\n".join(_docstrings(path.read_bytes()))
        if text:
            documents.append((path.name, text + "\n"))
    return documents


def _docstrings(source: bytes) -> Iterator[str]:
    with warnings.catch_warnings():  # invalid escapes in other people's strings
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    owners = (
        n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    nodes = sorted(owners, key=lambda node: getattr(node, "lineno", 0))
    for node in nodes:
        if text := ast.get_docstring(node):
            yield text
