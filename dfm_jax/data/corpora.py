"""Corpora by name: from what a user writes in `data.train` to units of rows of text.

    SPEC      = WHERE[:KEY=VALUE]...
    WHERE     = NAME            a corpus of the table below (`pydocs`, `fineweb-edu`, ...)
              | NAME@PATH       the rules of that corpus on local files; all their rows belong to the split asked for
              | PATH            a file, folder or glob of what readers.READERS lists, or a folder written by
                                `save_to_disk` of Hugging Face datasets
              | URL             the same in an object store or on a web server: gs://, s3://, hf://, https://
              | OWNER/DATASET   any dataset of the Hugging Face hub that needs no script
    KEY=VALUE = config=.. split=.. revision=.. (hub), column=.. (the text's; default `text`),
                documents=file|lines (what one document of a .txt is; default file),
                prompt=.. response=.. messages=.. template=.. (records, see readers/records.py)

A path that exists is meant as it stands, whatever signs it holds: the longest such beginning of a spec is its WHERE.
A name of the table is meant before a path of the same name; `./NAME` is the path.

Work is divided into units, a list that depends on the corpus alone. A unit's shards depend on the unit alone, so the
same bytes come out of one machine, of n machines, and of a run that was killed.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dfm_jax.data import readers
from dfm_jax.data.identity import Memory
from dfm_jax.data.manifest import MANIFEST, Manifest
from dfm_jax.data.readers import records
from dfm_jax.data.rows import Cut, Item, Row, Rules, Unit
from dfm_jax.data.sources import hub, local, pydocs, remote
from dfm_jax.data.sources.wikitext import detokenize
from dfm_jax.runtime.errors import UsageError, WorldError

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

OPTIONS = ("config", "split", "revision", "column", "documents", *records.OPTIONS)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One split of a corpus.

    identity: what its tokens depend on besides the tokenizer, as JSON; may read its files or ask the hub.
    earlier: the identity that version 0.1 gave it, whose shards are used where they are there.
    left_out: what its folder holds and is not read, a line for each reason.
    records: whether its rows are prompts with responses.
    """

    name: str
    identity: Callable[[Memory], Mapping[str, Any]]
    units: Callable[[Memory], Sequence[Unit]]
    earlier: Callable[[], Mapping[str, Any]]
    detokenize: Callable[[str], str] | None = None
    keep_empty: bool = False
    left_out: tuple[str, ...] = ()
    records: bool = False


def resolve(spec: str, split: str, field: str) -> Corpus:
    """The corpus that `spec` names, without reading its text. field: the config field to name in an error.

    Raises UsageError when spec has no meaning, WorldError when its files are not there.
    """
    where, options = split_spec(spec, field)
    if where == "pydocs":
        refuse_options(spec, field, options, OPTIONS, "pydocs")

        def identity(memory: Memory | None = None) -> Mapping[str, Any]:
            return {"python": pydocs.VERSION}

        return Corpus("pydocs", identity, lambda memory: [Unit([_PydocsPart(split)])], identity)
    name, at, files = where.partition("@")
    if at and name in NAMED:
        return _local(files, spec, split, field, NAMED[name], options)
    if remote.is_url(where):
        return _remote(where, spec, field, Rules(), options)
    if where in NAMED:
        return _hub(spec, split, field, where, NAMED[where], options)
    if _exists(where) or _is_a_path(where):
        return _local(where, spec, split, field, Rules(), options)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        return _hub(spec, split, field, where, Rules(where, splits={"train": "train", "valid": "validation"}), options)
    raise UsageError(
        f"{field} = {spec}: expected pydocs, {', '.join(NAMED)}, NAME@PATH, an existing file, folder or glob, "
        "or OWNER/DATASET of the Hugging Face hub"
    )


def names_records(spec: str, cache: pathlib.Path) -> bool:
    """Whether a spec says that its rows are records, or is a folder of prepared ones. Reads no text. cache: where
    copies of folders in stores are.
    """
    where, options = _split(spec)
    if any(key in records.OPTIONS for key, _ in options):
        return True
    folder = pathlib.Path(os.path.expanduser(where))
    if remote.is_url(where):
        folder = remote.mirrored(where, cache) or folder
    return (folder / MANIFEST).is_file() and bool(Manifest.load(folder).records)


def local_path(spec: str) -> pathlib.Path | None:
    """The path that a spec means, whether there is anything or not; None for a corpus of another kind."""
    where, _ = _split(spec)
    path = _path_of(where)
    if remote.is_url(path):
        return None
    if path != where or _exists(where) or _is_a_path(where) or "/" not in where:
        return None if where in ("pydocs", *NAMED) else pathlib.Path(os.path.expanduser(path))
    return None


def _path_of(where: str) -> str:
    """PATH of NAME@PATH; all of it where that is something else."""
    name, at, path = where.partition("@")
    return path if at and name in NAMED else where


def _exists(where: str) -> bool:
    return os.path.exists(os.path.expanduser(where))


def _is_a_path(where: str) -> bool:
    """Whether a spec that is nothing on this disk can only mean a path: then the hub is not asked."""
    path = pathlib.Path(where)
    return bool(
        where.startswith(("/", "~", "."))
        or where.count("/") > 1
        or where.endswith("/")
        or readers.kind_of_name(path)
        or re.search(r"[*?\[]", where)
        or ("/" in where and path.parent.is_dir())
    )


def _split(spec: str) -> tuple[str, list[tuple[str, str]]]:
    where, options = spec, []
    while not _exists(_path_of(where)) and (
        match := re.fullmatch(rf"(.+):({'|'.join(OPTIONS)})=(.*)", where, re.DOTALL)
    ):
        where, key, value = match.groups()
        options.append((key, value))
    return where, options[::-1]


def split_spec(spec: str, field: str) -> tuple[str, dict[str, str]]:
    """WHERE and the options of a spec. Raises UsageError for an option that is none, empty or given twice."""
    where, found = _split(spec)
    options: dict[str, str] = {}
    for key, value in found:
        if not value or key in options:
            raise UsageError(f"{field} = {spec}: {key}={value}: expected {key}=VALUE once")
        options[key] = value
    if not _exists(_path_of(where)) and (match := re.fullmatch(r"(.+):(\w+=[^:/]*)", where)):
        beginning = _path_of(match[1])
        if (
            beginning in ("pydocs", *NAMED)
            or _exists(beginning)
            or remote.is_url(beginning)
            or not _is_a_path(beginning)
        ):
            accepted = ", ".join(f"{option}=..." for option in OPTIONS)
            raise UsageError(f"{field} = {spec}: {match[2]}: expected {accepted}")
    if options.get("documents", "file") not in ("file", "lines"):
        raise UsageError(f"{field} = {spec}: documents = {options['documents']}: expected file, lines")
    return where, options


def refuse_options(spec: str, field: str, options: Mapping[str, str], refused: Sequence[str], what: str) -> None:
    """Raises UsageError for an option among `refused`, which mean nothing for `what`."""
    for key in refused:
        if key in options:
            accepted = ", ".join(option for option in OPTIONS if option not in refused) or "none"
            raise UsageError(
                f"{field} = {spec}: {key}={options[key]} means nothing for {what}: expected the options {accepted}"
            )


def _local(path: str, spec: str, split: str, field: str, rules: Rules, options: Mapping[str, str]) -> Corpus:
    if remote.is_url(path):
        return _remote(path, spec, field, rules, options)
    where = f"{field} = {spec}"
    rules, reading = _as_said(rules, options, where)
    form = rules.form
    if hub.is_saved(path):
        refuse_options(spec, field, options, ("config", "revision", "documents"), "a folder written by save_to_disk")
        folder = hub.saved_folder(path, options.get("split"), split, where)
        return Corpus(
            spec,
            lambda memory: {"contents": hub.saved_identity(folder, memory), **reading},
            lambda memory: [Unit([hub.SavedPart(folder, rules.column, where, form)])],
            lambda: {"files": hub.saved_stamps(folder), **reading},
            rules.detokenize,
            rules.keep_empty,
            records=form is not None,
        )
    refuse_options(spec, field, options, ("config", "split", "revision"), "local files")
    files, left_out = local.find(path, where)
    local.check_options(
        files, [key for key in ("column", "documents", *records.OPTIONS) if key in options], spec, field
    )
    kinds = [readers.kind_of_name(file) for file in files]
    return Corpus(
        spec,
        lambda memory: {"contents": list(zip(kinds, memory.hashes(files), strict=True)), **reading},
        lambda memory: local.units(files, rules, where, memory),
        lambda: {"files": local.stamps(files), **reading},
        rules.detokenize,
        rules.keep_empty,
        left_out,
        form is not None,
    )


def _as_said(rules: Rules, options: Mapping[str, str], where: str) -> tuple[Rules, dict[str, Any]]:
    """The rules with the options of a spec, and what of them is part of an identity."""
    said = {name: options[name] for name in ("column", "documents") if name in options}
    rules = dataclasses.replace(rules, **said, form=records.form(options, where))
    reading: dict[str, Any] = {"column": rules.column, "documents": rules.documents, "rules": rules.flags()}
    return rules, reading if rules.form is None else {**reading, "records": rules.form.identity}


def _remote(url: str, spec: str, field: str, rules: Rules, options: Mapping[str, str]) -> Corpus:
    where = f"{field} = {spec}"
    refuse_options(spec, field, options, ("config", "split", "revision"), "files in a store")
    rules, reading = _as_said(rules, options, where)
    remote.opened(url, where)  # a URL with credentials goes no further
    files = functools.cache(lambda: remote.find(url, where))

    def identity(memory: Memory) -> Mapping[str, Any]:
        return {"remote": [[readers.kind_of_name(pathlib.Path(file.path)), file.mark] for file in files()], **reading}

    def units(memory: Memory) -> Sequence[Unit]:
        return local.grouped([remote.RemotePart(file, rules, where, memory.folder / "remote") for file in files()])

    return Corpus(
        spec,
        identity,
        units,
        lambda: {"remote": url},  # no earlier version read stores
        rules.detokenize,
        rules.keep_empty,
        records=rules.form is not None,
    )


def _hub(spec: str, split: str, field: str, name: str, rules: Rules, options: Mapping[str, str]) -> Corpus:
    where = f"{field} = {spec}"
    if not rules.hub:
        raise UsageError(f"{where}: the hub serves this corpus only as a script: expected {name}@PATH")
    refuse_options(spec, field, options, ("documents",), "a dataset of the hub")
    hub_split = options.get("split", rules.splits.get(split, ""))
    if not hub_split:
        raise UsageError(f"{where}: it has no split for this: expected {name}:split=NAME, another corpus")
    source = hub.Source(
        rules.hub, options.get("config", rules.config), hub_split, options.get("revision"),
        options.get("column", rules.column), where, records.form(options, where),
    )  # fmt: skip
    reading: dict[str, Any] = {} if source.form is None else {"records": source.form.identity}
    earlier = {"hub": source.asked_for(), "rules": rules.flags(), **reading}
    return Corpus(
        spec,
        lambda memory: {**_at_commit(source, rules), **reading},
        lambda memory: source.units(),
        lambda: earlier,
        rules.detokenize,
        rules.keep_empty,
        records=source.form is not None,
    )


def _at_commit(source: hub.Source, rules: Rules) -> Mapping[str, Any]:
    """The same for every revision that stands for the same commit."""
    commit = source.commit()
    asked_for = dataclasses.replace(source, revision=None if commit else source.revision).asked_for()
    return {"hub": asked_for, "commit": commit, "rules": rules.flags()}


class _PydocsPart:
    name = "pydocs"
    size = 1
    key = ""

    def __init__(self, split: str):
        self._split, self._fraction = split, 0.0

    def rows(self, skip: int, cut: Cut) -> Iterator[Item]:
        documents = list(pydocs.documents(self._split))
        if not documents:
            raise WorldError("pydocs: this Python has neither pydoc_data nor the sources of its library")
        for i, text in enumerate(documents[skip:], skip + 1):
            yield Row(text)
            self._fraction = i / len(documents)

    def fraction(self) -> float:
        return self._fraction
