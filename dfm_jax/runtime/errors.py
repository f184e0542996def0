"""The errors that end a command with one line on stderr: what is wrong, and what was expected."""

import os
import sys
from collections.abc import Callable


class UsageError(Exception):
    """The command or the config is wrong: `in_one_line` prints the line and gives status 2.

    The text has the form `FIELD = VALUE: expected ...`.
    """


class WorldError(Exception):
    """The command is right but the world is not (disk, cache, network, another run's files): exit status 1."""


def in_one_line(command: Callable[[], int]) -> int:
    """Exit status of a command: its own; 1 the world is wrong (disk, cache, another run's files), 2 the command is
    wrong, 130 ^C."""
    try:
        return command()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WorldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has what he wanted. Python would say so again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A disk that is full, a folder that went away: what every part of the program may meet at any time.
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        print(f"error: {error.filename or 'disk'}: {reason}: expected a file that can be used", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Training and its saving have their own answer to a signal; this is one before or after them.
        print("interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        return 130
