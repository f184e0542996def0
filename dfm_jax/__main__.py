"""`python -m dfm_jax`: train, evaluate and sample discrete flow matching models; README.md has the modes and flags."""

import sys


def main() -> int:
    """Exit status: 0 done, 1 the world is wrong (disk, cache, another run's files), 2 the command is wrong, 130 ^C."""
    import os

    from dfm_jax.errors import UsageError, WorldError

    try:
        from dfm_jax import command_line, commands

        if "--help" in sys.argv[1:]:
            print(command_line.help_text())
            return 0
        return commands.run(command_line.parse(sys.argv))
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
        print(f"error: {error.filename or 'disk'}: {reason}: accepted a file that can be used", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Training and its saving have their own answer to a signal; this is one before or after them.
        print("interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
