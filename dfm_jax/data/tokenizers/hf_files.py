"""The files of a published tokenizer: found in a folder or on the hub, read, and known by their contents.

`tokenizer.json` is the tokenizer. `tokenizer_config.json` and `special_tokens_map.json`, where they are there, say
which of its tokens ends a text, which pads, and so on.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from dfm_jax.data import repositories
from dfm_jax.runtime.errors import WorldError

PREFIX = "hf:"
TOKENIZER = "tokenizer.json"
OTHERS = ("tokenizer_config.json", "special_tokens_map.json")
KEPT = "tokenizer"  # the folder of a run's own copy
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# What ends a text, where no file says so: the first of these that is a special token.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>", "[SEP]")


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """What a tokenizer's files say.

    Attributes:
        folder: that they lie in.
        json: the text of tokenizer.json.
        added: {id: content} of special tokens that only the config adds.
        size: ids are 0 .. size - 1; ids without a token count too.
        special: {role: id} of the roles in `ROLES` that have a token, by the tokenizer's own files.
        marks: {how it is written: id} of all its special tokens.
        eos_id: the token that ends a text; without one the separator (BERT's [SEP]); -1 for none.
        identity: "hf:" and 16 hex digits, of all that the ids depend on, wherever the files lie.
    """

    folder: pathlib.Path
    json: str
    added: Mapping[int, str]
    size: int
    special: Mapping[str, int]
    marks: Mapping[str, int]
    eos_id: int
    identity: str


def describe(name: str) -> Description:
    """The files of `hf:NAME_OR_FOLDER`. Raises WorldError, a line that names what is missing or wrong, and UsageError
    where the hub has no such repository.
    """
    folder = find(name)
    stamps = tuple(_stamp(folder / file) for file in (TOKENIZER, *OTHERS))
    return _read(name, folder, stamps)


def find(name: str) -> pathlib.Path:
    """The folder that holds tokenizer.json: the one named, or the hub's cache, filled where the hub can be reached."""
    where = name.removeprefix(PREFIX)
    folder = pathlib.Path(os.path.expanduser(where))
    if folder.name == TOKENIZER and folder.is_file():
        return folder.parent
    if (folder / TOKENIZER).is_file():
        return folder
    if folder.is_dir() or where.count("/") > 1 or where.startswith((".", "/", "~")):
        raise WorldError(f"tokenizer.name = {name}: expected a folder with {TOKENIZER}, or a name on the hub")
    return repositories.fetch(
        where, (TOKENIZER, *OTHERS), f"tokenizer.name = {name}", needs=TOKENIZER, cache_first=True
    )


def keep(name: str, run: pathlib.Path) -> None:
    """Copies the files of `hf:...` into the run's folder, so that the folder alone is enough; others have none."""
    copy_files(name, run / KEPT)


def copy_files(name: str, place: pathlib.Path) -> None:
    """Copies the files of `hf:...` into a folder, which is made; other tokenizers are part of every installation."""
    if not name.startswith(PREFIX):
        return
    source = find(name.removesuffix(_ending(name)))
    if (place / TOKENIZER).is_file() and os.path.samefile(source, place):
        return
    place.mkdir(parents=True, exist_ok=True)
    for file in (*OTHERS, TOKENIZER):  # the one that makes the folder a tokenizer comes last
        if (source / file).is_file():
            shutil.copyfile(source / file, place / f"{file}.part")
            os.replace(place / f"{file}.part", place / file)


def kept(name: str, run: pathlib.Path) -> str:
    """`name`, or the run's own copy of its files where the run, or a published folder, has one."""
    own = next((place for place in (run / KEPT, run) if (place / TOKENIZER).is_file()), None)
    return f"{PREFIX}{own}{_ending(name)}" if name.startswith(PREFIX) and own else name


def same(trained: str, given: str, run: pathlib.Path) -> bool:
    """Whether the tokenizer `given` is that of the run in `run`, which was trained with the one called `trained`."""
    if not (trained.startswith(PREFIX) and given.startswith(PREFIX)):
        return trained == given
    own = kept(trained, run)
    if own == trained == given:
        return True
    ends = _ending(own), _ending(given)
    return ends[0] == ends[1] and _identity(own) == _identity(given)


def _ending(name: str) -> str:
    """What changes the tokenizer that is named before it, such as `:without=103`."""
    match = re.search(r"(:(without|size)=\d+)+$", name)
    return match[0] if match else ""


def _identity(name: str) -> str:
    return describe(name.removesuffix(_ending(name))).identity


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _read(name: str, folder: pathlib.Path, stamps: tuple) -> Description:
    text = _text(name, folder / TOKENIZER)
    content = _object(name, folder / TOKENIZER, text)
    configs = [_object(name, folder / file, _text(name, folder / file)) for file in OTHERS if (folder / file).is_file()]
    try:
        ids = _vocabulary(content)
        added = _added(configs, ids)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise WorldError(
            f"tokenizer.name = {name}: {folder / TOKENIZER}: {' '.join(str(error).split())}: expected the file of a "
            "tokenizer of the tokenizers library"
        ) from error
    if (content.get("model") or {}).get("dropout"):
        raise WorldError(
            f"tokenizer.name = {name}: {folder / TOKENIZER}: model.dropout = {content['model']['dropout']}: expected "
            "none, with which a text has one encoding"
        )
    ids |= {token: i for i, token in added.items()}
    special = _special(configs, ids)
    marks = {token["content"]: token["id"] for token in content.get("added_tokens") or () if token.get("special")}
    marks |= {token: i for i, token in added.items()}
    guess = next((marks[token] for token in ENDS if token in marks), -1)
    eos_id = special.get("eos", special.get("sep", guess))
    size = max(ids.values()) + 1
    key = json.dumps([hashlib.sha256(text.encode()).hexdigest(), sorted(added.items()), size, eos_id])
    identity = PREFIX + hashlib.sha256(key.encode()).hexdigest()[:16]
    return Description(folder, text, added, size, special, marks, eos_id, identity)


def _text(name: str, file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"tokenizer.name = {name}: {file}: {error}: expected a file that can be read") from error


def _object(name: str, file: pathlib.Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WorldError(f"tokenizer.name = {name}: {file}: {error}: expected JSON") from error
    if not isinstance(content, dict):
        raise WorldError(f"tokenizer.name = {name}: {file}: expected a JSON object")
    return content


def _vocabulary(content: dict[str, Any]) -> dict[str, int]:
    """{token: id} of a tokenizer.json, added tokens included."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [token, log-probability], by id
        ids = {entry[0]: i for i, entry in enumerate(vocabulary)}
    else:
        ids = dict(vocabulary)
    ids |= {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    if not ids or not all(isinstance(i, int) and 0 <= i < 2**31 for i in ids.values()):
        raise ValueError("its vocabulary has no ids")
    return ids


def _added(configs: list[dict[str, Any]], ids: dict[str, int]) -> dict[int, str]:
    """{id: content} of the tokens that only the config knows, in the order of their ids."""
    found = {}
    for config in configs:
        for i, token in (config.get("added_tokens_decoder") or {}).items():
            if token["content"] not in ids:
                found[int(i)] = token["content"]
    return dict(sorted(found.items()))


def _special(configs: list[dict[str, Any]], ids: dict[str, int]) -> dict[str, int]:
    found = {}
    for role in ROLES:
        for config in configs:
            token = config.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token in ids:
                found.setdefault(role, ids[token])
    return found
