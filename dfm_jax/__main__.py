"""`python -m dfm_jax`: train, evaluate and sample discrete flow matching models; README.md has the modes and flags."""

import ctypes
import sys

from dfm_jax.runtime.errors import in_one_line
from dfm_jax.runtime.utf8 import print_anything


def main() -> int:
    """Carries out the command line; the exit status, see `in_one_line`."""
    print_anything()
    keep_freed_memory()
    return in_one_line(command)


def keep_freed_memory() -> None:
    """Asks glibc to grow its heaps by 64 MiB at a time; where another library allocates, nothing.

    A program on a processor takes the memory of its arrays from malloc at every call. By default glibc gives it back to
    the system at every call too, and each page that is written again costs a fault, an eighth of the time of a small
    run. It counts only before jax starts its threads. In Python the variable MALLOC_TOP_PAD_=67108864 does the same.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(-2, 64 << 20)  # M_TOP_PAD


def command() -> int:
    # Within `in_one_line`, so that ^C during the long imports ends as at any other time.
    from dfm_jax import cli
    from dfm_jax.cli import command_line

    for word in sys.argv[1:]:
        name, _, topic = word.partition("=")
        if name == "--help":
            print(command_line.help_text(topic))
            return 0
    return cli.run(command_line.parse(sys.argv))


if __name__ == "__main__":
    sys.exit(main())
