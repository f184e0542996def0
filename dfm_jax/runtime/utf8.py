"""Text that leaves the program is UTF-8, or what stands in for it: a character never ends a command.

A console, a pipe or a locale may know ASCII or Latin-1 only, and a folder may have a name that is no text at all.
"""

import codecs
import sys

STAND_INS = {"±": "+-", "·": "-", "×": "x", "–": "-", "—": "-", "…": "...", "‖": "|", "≤": "<=", "≥": ">=", "→": "->"}
HANDLER = "dfm_jax.stand_in"


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    """For what an encoding lacks: the byte of a file name that is not text, a spelling in ASCII, or '?'."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, end = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":  # so Python holds a byte that it could not decode
        return bytes([ord(character) - 0xDC00]), end
    return STAND_INS.get(character, "?"), end


codecs.register_error(HANDLER, _stand_in)


def print_anything() -> None:
    """From now on stdout and stderr take every character, whatever the console's encoding; they never raise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook or a test has put its own
            stream.reconfigure(errors=HANDLER)  # pyright: ignore[reportAttributeAccessIssue]


def encoded(text: str) -> bytes:
    """`text` as valid UTF-8. The bytes of a file name that are no text come as U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", HANDLER).decode("utf-8", "replace").encode()
