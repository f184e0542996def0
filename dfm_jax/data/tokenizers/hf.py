"""`hf:NAME_OR_FOLDER`: any tokenizer.json, by the `tokenizers` library; the ids are those that transformers gives."""

import functools
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dfm_jax.data.tokenizers import hf_files
from dfm_jax.data.tokenizers.base import checked
from dfm_jax.data.tokenizers.hf_cuts import find_cuts
from dfm_jax.data.tokenizers.hf_files import Description
from dfm_jax.data.tokenizers.pieces import PIECE_CHARS, split_long
from dfm_jax.runtime.errors import WorldError


class HFTokenizer:
    """See `Tokenizer`. Its name is its identity: "hf:" and a hash of the files, the same wherever they lie.

    special: {role: id} for the roles bos, eos, unk, sep, pad, cls, mask that its files name. marks: of all its special
    tokens, {how it is written: id}.
    """

    def __init__(self, description: Description):
        self.name, self.vocab_size, self.eos_id = description.identity, description.size, description.eos_id
        self.special: Mapping[str, int] = description.special
        self.marks: Mapping[str, int] = description.marks
        content = json.loads(description.json)
        # In a corpus the name of a special token is text like any other: a document cannot end itself.
        self._of_text = _library(description, json.dumps(_without_special(content)))
        self._of_text.encode_special_tokens = True
        self._tokenizer = _library(description, description.json, description.added)
        self._cut = find_cuts(content)
        self._bytes = _bytes_of(content)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        pieces = [split_long(text, self.cut) if len(text) > PIECE_CHARS else [text] for text in texts]
        encodings = iter(
            self._of_text.encode_batch_fast([p for parts in pieces for p in parts], add_special_tokens=False)
        )
        found = [[np.array(next(encodings).ids, np.uint32) for _ in parts] for parts in pieces]
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]

    def encode_special(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)

    def cut(self, text: str) -> int:
        return self._cut(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(checked(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """See `Tokenizer`; every special token stands for no bytes. A normalizer's text is what is counted."""
        ids = checked(ids, self.vocab_size)
        if self._bytes is None:
            return self._tokenizer.decode(ids[ids != self.eos_id].tolist(), skip_special_tokens=True).encode()
        return b"".join(self._bytes.get(i, b"") for i in ids.tolist() if i != self.eos_id)


def make(name: str) -> HFTokenizer:
    return _of(hf_files.describe(name))


def size(name: str) -> int:
    return hf_files.describe(name).size


@functools.lru_cache(maxsize=4)
def _of(description: Description) -> HFTokenizer:
    return HFTokenizer(description)


def _without_special(content: dict[str, Any]) -> dict[str, Any]:
    """`content` in whose vocabulary no text is a special token.

    A vocabulary may hold the special tokens as pieces of text (Unigram's do). They get a name with a sign that is no
    character and never will be; their ids stay.
    """
    model = content["model"]
    special = {token["content"] for token in content.get("added_tokens") or () if token.get("special")}
    special.discard(model.get("unk_token"))  # which the model asks for by its name

    def hidden(token: str) -> str:
        return f"\U0010ffff{token}" if token in special else token

    if isinstance(model["vocab"], list):
        vocabulary: Any = [[hidden(token), score] for token, score in model["vocab"]]
    elif model.get("type") == "BPE" and not model.get("ignore_merges"):
        return content  # its pieces come of merges, which name them
    else:
        vocabulary = {hidden(token): i for token, i in model["vocab"].items()}
    added = [token for token in content.get("added_tokens") or () if token["content"] not in special]
    return {**content, "model": {**model, "vocab": vocabulary}, "added_tokens": added}


def _library(description: Description, text: str, added: Mapping[int, str] = types.MappingProxyType({})) -> Any:
    """The library's tokenizer of a tokenizer.json. WorldError where the library is not there or cannot read it."""
    where = f"tokenizer.name = hf:{description.folder}"
    try:
        import tokenizers
    except ImportError as error:
        raise WorldError(f"{where}: expected the tokenizers package to be there (pip install tokenizers)") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for i, token in added.items():
            tokenizer.add_special_tokens([token])
            if tokenizer.token_to_id(token) != i:
                raise ValueError(f"the config's token {token!r} has the id {i}, not {tokenizer.token_to_id(token)}")
    except Exception as error:  # the library raises Exception itself
        line = " ".join(str(error).split())
        raise WorldError(f"{where}: {line}: expected a tokenizer.json that this version of tokenizers reads") from error
    return tokenizer


def _bytes_of(content: dict[str, Any]) -> dict[int, bytes] | None:
    """{id: bytes} of a byte-level vocabulary, whose tokens may end within a character; None for any other."""
    decoder = content.get("decoder") or {}
    kinds = [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))]
    vocabulary = content["model"]["vocab"]
    if kinds != ["ByteLevel"] or not isinstance(vocabulary, dict):
        return None
    values = _byte_of_character()
    special = {token["id"] for token in content.get("added_tokens") or () if token.get("special")}
    found = {
        i: bytes(values[c] for c in token)
        for token, i in vocabulary.items()
        if i not in special and all(c in values for c in token)
    }
    added = {token["id"]: token["content"].encode() for token in content.get("added_tokens") or ()}
    return found | {i: value for i, value in added.items() if i not in special}


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary: printable ones themselves, others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
