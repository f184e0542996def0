"""A long text in pieces whose tokens, put together, are the tokens of the whole."""

import re
from collections.abc import Callable, Iterator

# A longer text is encoded in pieces of about this many characters, which bounds the memory of one document.
PIECE_CHARS = 1 << 20


def split_long(text: str, cut: Callable[[str], int], size: int = PIECE_CHARS) -> list[str]:
    """Pieces of at most `size` characters, longer only where `cut` (see Tokenizer.cut) finds no place before that."""
    return list(split_stream((text[i : i + size] for i in range(0, len(text), size)), cut, size)) or [""]


def split_stream(chunks: Iterator[str], cut: Callable[[str], int], size: int = PIECE_CHARS) -> Iterator[str]:
    """As `split_long`, of a text that comes in chunks. The time is linear in the text, whatever it is.

    The text is looked at when `size` characters are there, and after a failure when there are twice as many: so no
    character is looked at more than twice, and the memory is bounded by the longest part that cannot be cut.
    """
    pending: list[str] = []
    length, wanted = 0, size
    for chunk in chunks:
        pending.append(chunk)
        length += len(chunk)
        while length > wanted:
            text = "".join(pending)
            place = cut(text)
            if place:
                yield text[:place]
                text = text[place:]
            wanted = size if place else 2 * length
            pending, length = [text], len(text)
    if length:
        yield "".join(pending)


def last_match(pattern: re.Pattern, text: str, start: int) -> int:
    """Where the last match at or after `start` begins; 0 if there is none."""
    place = 0
    for match in pattern.finditer(text, max(start, 0)):
        place = match.start()
    return place
