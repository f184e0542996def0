"""`python -m dfm_jax`: train, evaluate and sample discrete flow matching models; README.md has the modes and flags."""

import sys

from dfm_jax.runtime.errors import in_one_line
from dfm_jax.runtime.utf8 import print_anything


def main() -> int:
    """Carries out the command line; the exit status, see `in_one_line`."""
    print_anything()
    return in_one_line(command)


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
