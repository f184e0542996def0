"""The list of all fields: for `--help=config`, and `python -m dfm_jax.config.reference > docs/config.md`."""

import textwrap
from typing import Any

from dfm_jax.config.fields import GROUPS, TABLE
from dfm_jax.config.retired import RETIRED
from dfm_jax.config.statement import Field

WIDTH = 100


def text() -> str:
    """Every field with its default, meaning, unit and what is expected, for the terminal."""
    lines = ["The fields of a config, on the command line --config.GROUP.FIELD=VALUE:"]
    for group, cls in GROUPS.items():
        lines += ["", f"{group}: {cls.__doc__}"]
        for field in fields_of(group):
            lines.append(f"  {field.name} = {written(field.default)}")
            lines += textwrap.wrap(
                f"{field.meaning}{unit(field)}; expected {expected(field)}",
                WIDTH,
                initial_indent="      ",
                subsequent_indent="      ",
            )
    return "\n".join(lines)


def page() -> str:
    """The page docs/config.md."""
    lines = [
        "# Fields of a config",
        "",
        "Written by `python -m dfm_jax.config.reference > docs/config.md` from `dfm_jax/config/fields.py`.",
        "",
        "A config file changes defaults (`config.optim.lr = 1e-3`), and so does a command line",
        "(`--config.optim.lr=1e-3`). `python main.py --help=config` lists the same fields. The devices compute in",
        "float32: a number that float32 turns into 0, an infinity or something that the field does not accept is",
        "refused. `~` is the home folder in every field that takes a path.",
        "",
        "*continues*: whether a run that is continued may have another value. *network*: with another value a",
        "checkpoint is another network, though its arrays have the same shapes, and is refused.",
    ]
    for group, cls in GROUPS.items():
        lines += ["", f"## {group}", "", str(cls.__doc__), ""]
        lines += ["| field | default | meaning | expected | continues | network |", "|---|---|---|---|---|---|"]
        lines += [row(field) for field in fields_of(group)]
    lines += ["", "## Retired", "", "| name | now |", "|---|---|"]
    lines += [f"| `{name}` | {cell(old.note or f'`{old.to}`')} |" for name, old in RETIRED.items()]
    return "\n".join(lines) + "\n"


def expected(field: Field) -> str:
    return field.expected + (", or auto: see training.auto" if field.auto else "")


def row(field: Field) -> str:
    cells = (
        f"`{field.name.partition('.')[2]}`",
        f"`{written(field.default)}`",
        cell(field.meaning + unit(field)),
        cell(expected(field)),
        field.continues.words,
        "yes" if field.network else "",
    )
    return "| " + " | ".join(cells) + " |"


def fields_of(group: str) -> list[Field]:
    return [field for field in TABLE.values() if field.name.startswith(f"{group}.")]


def written(value: Any) -> str:
    """A value as it is written on a command line; no text as ''."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else "''" if value == "" else str(value)


def unit(field: Field) -> str:
    """The unit, where the meaning does not begin with it."""
    return f" ({field.unit})" if field.unit and not field.meaning.startswith(field.unit) else ""


def cell(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*")


if __name__ == "__main__":
    print(page(), end="")
