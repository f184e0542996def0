"""Where a text can be cut without changing the tokens that a tokenizer.json makes of it, whatever follows.

A tokenizer of the library normalizes the text, divides it into words, and encodes each word by itself. So a cut between
two words is right if the normalizer does not look across it and the words of both sides are those of the whole. Which
places are such ones is known for the usual normalizers and dividers; for others no cut is made, and a document is
encoded as a whole.

A blank between two letters is a place where a word ends for all of them: those that drop white space, those that begin
a word with its blank (the expressions of GPT-2, GPT-4, Llama 3 and Qwen 2), and Metaspace, which makes a sign of the
blank. The cut is before the blank: a piece that begins with one gets no other in front.
"""

import re
from collections.abc import Callable
from typing import Any

from dfm_jax.data.tokenizers.pieces import last_match

_WINDOW = 1 << 12
# Letters that no normalization of Unicode divides, joins with a blank before them, or takes for anything else.
_LETTER = (
    r"A-Za-z\u00d8-\u00f6\u00f8-\u0131\u0400-\u0481\u048a-\u052f"  # Latin, Cyrillic
    r"\u05d0-\u05ea\u0621-\u064a\u0905-\u0939\uac00-\ud7a3"  # Hebrew, Arabic, Devanagari, Hangul
)
_BLANK = re.compile(f"(?<=[{_LETTER}]) (?=[{_LETTER}])")
# Where white space is dropped, any blank or end of a line after a letter, a number or a usual sign.
_SPACE = re.compile(r"(?<=[\w!-/:-@\[-`{-~\u3001\u3002\uff01\uff0c\uff1f])[ \n]")

_NORMALIZERS = frozenset(
    ("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Precompiled", "ByteLevel")
)
_DROPS_SPACE = frozenset(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"))
_SPLITS_MORE = frozenset(("Digits", "Punctuation"))
# Expressions of `Split` in which a blank before a letter begins a word and a letter before a blank ends one.
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_EXPRESSIONS = frozenset(
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        rf"{_ENDINGS}\p{{N}}{{1,3}}{_REST}",
        rf"{_ENDINGS}\p{{N}}{_REST}",
    )
)


def find_cuts(content: dict[str, Any]) -> Callable[[str], int]:
    """`Tokenizer.cut` of a tokenizer.json, given as JSON; where nothing is known of it, one that never cuts."""
    pattern = _pattern(content)

    def cut(text: str) -> int:
        if pattern is None:
            return 0
        return last_match(pattern, text, len(text) - _WINDOW) or last_match(pattern, text, 0)

    return cut


def _pattern(content: dict[str, Any]) -> re.Pattern | None:
    parts = _parts(content.get("pre_tokenizer"), "pretokenizers")
    kinds = [part.get("type") for part in parts]
    drops = any(kind in _DROPS_SPACE for kind in kinds)
    ends = [kind in _DROPS_SPACE or _ends_words(part) for kind, part in zip(kinds, parts, strict=True)]
    known = all(
        end or kind in _SPLITS_MORE or (kind == "ByteLevel" and not part.get("use_regex", True))
        for end, kind, part in zip(ends, kinds, parts, strict=True)
    )
    normalizers = _parts(content.get("normalizer"), "normalizers")
    # A blank at the ends may go only where it goes anyway.
    local = all(_is_local(part) or (part.get("type") == "Strip" and drops) for part in normalizers)
    # Tokens that were added by hand are found in the text before it is divided.
    added = [token for token in content.get("added_tokens") or () if not token.get("special")]
    apart = not any(t.get("lstrip") or t.get("rstrip") or re.search(r"\s", t["content"]) for t in added)
    # The divider has to be the first that sees the text: what comes before it may not join across a blank.
    if not (any(ends) and known and local and apart):
        return None
    if any(part.get("type") == "ByteLevel" for part in normalizers):
        return None  # blanks are signs by then
    return _SPACE if kinds[:1] and kinds[0] in _DROPS_SPACE else _BLANK


def _parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a sequence; one step alone is a sequence of one."""
    if step is None:
        return []
    if step.get("type") == "Sequence":
        return [part for inner in step.get(name, ()) for part in _parts(inner, name)]
    return [step]


def _ends_words(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    if kind == "ByteLevel":
        return part.get("use_regex", True)
    if kind == "Metaspace":
        return part.get("split", True) and part.get("prepend_scheme", "always") in ("always", "never")
    if kind == "Split":
        expression = (part.get("pattern") or {}).get("Regex")
        return expression in _EXPRESSIONS and part.get("behavior") == "Isolated" and not part.get("invert")
    return False


def _is_local(part: dict[str, Any]) -> bool:
    if part.get("type") == "Replace":
        pattern = part.get("pattern") or {}
        text = pattern.get("String")
        return pattern.get("Regex") == " {2,}" or (text is not None and not re.search(r"\s|[^\W\d_]", text))
    return part.get("type") in _NORMALIZERS
