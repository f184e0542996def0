"""The errors that end a command with one line on stderr: what is wrong, and what would be accepted."""


class UsageError(Exception):
    """The command or the config is wrong: `main` prints the line and exits with status 2.

    The text has the form `FIELD=VALUE: accepted ...`.
    """


class WorldError(Exception):
    """The command is right but the world is not (disk, cache, network, another run's files): exit status 1."""
