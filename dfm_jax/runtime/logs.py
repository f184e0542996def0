"""orbax logs through absl, which configures Python's root logger at its first line: that is the program's to do."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def of_the_program() -> Iterator[None]:
    """Within the context absl's lines are logged, and after it the root logger has the handlers it had before.

    A root logger without handlers has one meanwhile, which writes absl's warnings to stderr and nothing of others.
    """
    added = hold()
    try:
        yield
    finally:
        release(added)


def hold() -> logging.Handler | None:
    """As entering `of_the_program`; what `release` then takes."""
    if logging.root.handlers:
        return None
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(logging.Filter("absl"))
    logging.root.addHandler(handler)
    return handler


def release(handler: logging.Handler | None) -> None:
    """Removes the handler that `hold` returned; None removes nothing."""
    if handler is not None:
        logging.root.removeHandler(handler)
