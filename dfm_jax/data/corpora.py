"""Corpora by name: from what a user writes in `data.train` to units of rows of text.

    SPEC      = WHERE[:KEY=VALUE]...
    WHERE     = NAME            a corpus of the table below (`pydocs`, `fineweb-edu`, ...)
              | NAME@PATH       the rules of that corpus on local files; all their rows belong to the split asked for
              | PATH            a file, folder or glob: .txt .jsonl .parquet (the first two also .gz .zst),
                                or a folder written by `save_to_disk` of Hugging Face datasets
              | OWNER/DATASET   any dataset of the Hugging Face hub that needs no script
    KEY=VALUE = config=.. split=.. revision=.. (hub), column=.. (the text's; default `text`),
                documents=file|lines (what one document of a .txt is; default file)

Work is divided into units, a list that depends on the corpus alone. A unit's shards depend on the unit alone, so the
same bytes come out of one machine, of n machines, and of a run that was killed.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dfm_jax.data import hub, local, pydocs
from dfm_jax.data.rows import Row, Rules, Unit
from dfm_jax.data.wikitext import detokenize
from dfm_jax.errors import UsageError, WorldError

NAMED: Mapping[str, Rules] = {
    "fineweb-edu": Rules("HuggingFaceFW/fineweb-edu", "CC-MAIN-2024-10", {"train": "train"}),
    "wikitext103": Rules(
        "Salesforce/wikitext",
        "wikitext-103-raw-v1",
        documents="lines",
        detokenize=detokenize,
        keep_empty=True,
        keep_newline=True,
    ),
    "openwebtext": Rules("Skylion007/openwebtext", None, {"train": "train"}),
    "lambada": Rules("EleutherAI/lambada_openai", "default", {"valid": "test"}, documents="lines"),
    "text8": Rules("afmck/text8"),
    # Script datasets, which the hub no longer serves: NAME@PATH only.
    "lm1b": Rules(documents="lines"),
    "ptb": Rules(column="sentence", documents="lines"),
}

OPTIONS = ("config", "split", "revision", "column", "documents")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One split of a corpus. `identity` is what its tokens depend on besides the tokenizer, as JSON."""

    name: str
    identity: Mapping[str, Any]
    units: Callable[[], Sequence[Unit]]
    detokenize: Callable[[str], str] | None = None
    keep_empty: bool = False


def resolve(spec: str, split: str, field: str) -> Corpus:
    """The corpus that `spec` names, without reading its text. field: the config field to name in an error.

    Raises UsageError when spec has no meaning, WorldError when its files are not there.
    """
    where, options = _split_options(spec, field)
    if where == "pydocs":
        return Corpus("pydocs", {"python": pydocs.VERSION}, lambda: [_PydocsUnit(split)])
    name, at, files = where.partition("@")
    if at and name in NAMED:
        return _local(files, spec, split, field, NAMED[name], options)
    if where in NAMED:
        return _hub(spec, split, field, where, NAMED[where], options)
    path = pathlib.Path(where).expanduser()
    if path.exists() or local.kind(path) or re.search(r"[*?\[]", where):
        return _local(where, spec, split, field, Rules(), options)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", where) and not where.startswith("."):
        return _hub(spec, split, field, where, Rules(where, splits={"train": "train", "valid": "validation"}), options)
    raise UsageError(
        f"{field}={spec}: accepted pydocs, {', '.join(NAMED)}, NAME@PATH, an existing file, folder or glob, "
        "or OWNER/DATASET of the Hugging Face hub"
    )


def _split_options(spec: str, field: str) -> tuple[str, dict[str, str]]:
    where, options = spec, {}
    while match := re.fullmatch(r"(.+):(\w+)=([^:]*)", where):
        where, key, value = match.groups()
        if key not in OPTIONS or not value:
            raise UsageError(f"{field}={spec}: {key}={value}: accepted {', '.join(f'{o}=...' for o in OPTIONS)}")
        options[key] = value
    if options.get("documents", "file") not in ("file", "lines"):
        raise UsageError(f"{field}={spec}: documents={options['documents']}: accepted file, lines")
    return where, options


def _local(path: str, spec: str, split: str, field: str, rules: Rules, options: Mapping[str, str]) -> Corpus:
    if hub.is_saved(path):
        _refuse(spec, field, options, ("config", "revision", "documents"), "a folder written by save_to_disk")
        rules = dataclasses.replace(rules, column=options.get("column", rules.column))
        unit, identity = hub.saved(path, options.get("split"), split, rules.column, f"{field}={spec}")
        units = functools.partial(list[Unit], [unit])
    else:
        _refuse(spec, field, options, ("config", "split", "revision"), "local files")
        rules = dataclasses.replace(
            rules,
            column=options.get("column", rules.column),
            documents=options.get("documents", rules.documents),
        )
        files = local.find(path, f"{field}={spec}")
        units, identity = functools.partial(local.units, files, rules, f"{field}={spec}"), local.identity(files)
    identity = {"files": identity, "column": rules.column, "documents": rules.documents, "rules": _rules(rules)}
    return Corpus(spec, identity, units, rules.detokenize, rules.keep_empty)


def _hub(spec: str, split: str, field: str, name: str, rules: Rules, options: Mapping[str, str]) -> Corpus:
    if not rules.hub:
        raise UsageError(f"{field}={spec}: the hub serves this corpus only as a script: accepted {name}@PATH")
    _refuse(spec, field, options, ("documents",), "a dataset of the hub")
    hub_split = options.get("split", rules.splits.get(split, ""))
    if not hub_split:
        raise UsageError(f"{field}={spec}: it has no split for this: accepted {name}:split=NAME, another corpus")
    source = hub.Source(
        rules.hub, options.get("config", rules.config), hub_split, options.get("revision"),
        options.get("column", rules.column), f"{field}={spec}",
    )  # fmt: skip
    identity = {"hub": source.identity(), "rules": _rules(rules)}
    return Corpus(spec, identity, source.units, rules.detokenize, rules.keep_empty)


def _refuse(spec: str, field: str, options: Mapping[str, str], refused: Sequence[str], what: str) -> None:
    for key in refused:
        if key in options:
            accepted = ", ".join(option for option in OPTIONS if option not in refused)
            raise UsageError(f"{field}={spec}: {key}={options[key]} means nothing for {what}: accepted {accepted}")


def _rules(rules: Rules) -> list[bool]:
    return [rules.detokenize is not None, rules.keep_empty, rules.keep_newline]


class _PydocsUnit:
    name = "pydocs"
    size = 1

    def __init__(self, split: str):
        self._split, self._fraction = split, 0.0

    def rows(self, skip: int) -> Iterator[Row]:
        documents = list(pydocs.documents(self._split))
        if not documents:
            raise WorldError("pydocs: this Python has neither pydoc_data nor the sources of its library")
        for i, text in enumerate(documents[skip:], skip + 1):
            yield Row(text)
            self._fraction = i / len(documents)

    def fraction(self) -> float:
        return self._fraction
