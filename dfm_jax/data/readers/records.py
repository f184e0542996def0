"""Records: a prompt and the response to it, from the columns of a row or from its list of messages.

    prompt=COLUMN response=COLUMN           both are columns
    template=FILE response=COLUMN           the prompt is the template, each {COLUMN} in it filled in
    messages=COLUMN template=FILE           the template, filled in with {role} and {content}, is repeated for each
                                            message; the response is the content of the last one, the assistant's

`{{` and `}}` in a template stand for braces. A row that is no record is an error that names its file, row and column.
"""

import dataclasses
import os
import pathlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dfm_jax.data.rows import Row
from dfm_jax.runtime.errors import UsageError, WorldError

OPTIONS = ("prompt", "response", "messages", "template")
ANSWERS = "assistant"  # the role whose message is a response
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Template:
    """A text with names in braces. parts: (text, the name that follows it or None)."""

    parts: tuple[tuple[str, str | None], ...]

    @property
    def names(self) -> set[str]:
        return {name for _, name in self.parts if name is not None}

    def fill(self, values: Mapping[str, str], until: str | None = None) -> str:
        """The text with every name filled in; with `until` the text before the first place of that name."""
        pieces = []
        for text, name in self.parts:
            pieces.append(text)
            if name is not None and name == until:
                break
            pieces.append("" if name is None else values[name])
        return "".join(pieces)


def read_template(file: str, where: str, *, keep_line_break: bool) -> Template:
    """Reads a template. where: `FIELD = SPEC`, for errors. keep_line_break: whether the file's last one is part of it.

    Raises WorldError where it cannot be read, UsageError where its braces mean nothing.
    """
    try:
        text = pathlib.Path(os.path.expanduser(file)).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise WorldError(
            f"{where}: template {file} cannot be read ({reason}): expected a text file in UTF-8"
        ) from error
    text = text if keep_line_break else text.removesuffix("\n")
    parts = []
    try:
        for literal, name, form, conversion in string.Formatter().parse(text):
            if name == "" or form or conversion:
                raise ValueError("a brace that names nothing, or more than a name")
            parts.append((literal, name))
    except ValueError as error:
        raise UsageError(
            f"{where}: template {file}: {error}: expected names in braces, as {{question}}, and {{{{ for a brace"
        ) from error
    return Template(tuple(parts))


@dataclasses.dataclass(frozen=True)
class Form:
    """Where a row holds its prompt and its response. where: `FIELD = SPEC`, for errors."""

    where: str
    prompt: str = ""
    response: str = ""
    messages: str = ""
    template: Template | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        if self.messages:
            return (self.messages,)
        names = (self.prompt,) if self.template is None else sorted(self.template.names)
        return tuple(dict.fromkeys([*names, self.response]))

    @property
    def identity(self) -> list[Any]:
        """What the records depend on besides the rows, as JSON."""
        return [
            self.prompt,
            self.response,
            self.messages,
            self.template and [list(part) for part in self.template.parts],
        ]

    def check(self, present: Iterable[str], place: str) -> None:
        """Raises UsageError for a column that is not among those of `place`, or is there twice."""
        present = list(present)
        for column in self.columns:
            if (count := present.count(column)) != 1:
                what = f"field {column} is there {count} times: expected it once" if count else f"no field {column}"
                expected = "" if count else f": expected it among {', '.join(present) or 'none'}"
                raise UsageError(f"{self.where}: {place}: {what}{expected}")

    def record(self, row: Mapping[str, Any], place: str, repaired: bool = False) -> Row:
        """The record of a row. Raises UsageError, naming `place` and the column, for a row that is none."""
        self.check(row, place)
        if self.messages:
            prompt, response = self._of_messages(row[self.messages], place)
            column = f"the last message of {self.messages}"
        else:
            values = {column: self._text(row[column], column, place) for column in self.columns}
            prompt = values[self.prompt] if self.template is None else self.template.fill(values)
            response, column = values[self.response], f"field {self.response}"
        if not response:
            raise UsageError(f"{self.where}: {place}: {column} is empty: expected a response")
        texts = [whole(prompt), whole(response)]
        return Row(texts[0], True, repaired or texts != [prompt, response], texts[1])

    def _of_messages(self, messages: Any, place: str) -> tuple[str, str]:
        assert self.template is not None
        wrong = f"{self.where}: {place}: field {self.messages}"
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise UsageError(f"{wrong} is no list of messages: expected [{{role, content}}, ...]")
        read = []
        for number, message in enumerate(messages, 1):
            if not isinstance(message, Mapping):
                raise UsageError(f"{wrong}, message {number} is no object: expected {{role, content}}")
            values = {}
            for name in ("role", "content"):
                if not isinstance(message.get(name), str):
                    raise UsageError(f"{wrong}, message {number} has no text {name}: expected {{role, content}}")
                values[name] = message[name]
            read.append(values)
        if read[-1]["role"] != ANSWERS:
            raise UsageError(f"{wrong}: the last message is of the role {read[-1]['role']}: expected {ANSWERS}")
        before = "".join(self.template.fill(values) for values in read[:-1])
        return before + self.template.fill(read[-1], until="content"), read[-1]["content"]

    def _text(self, value: Any, column: str, place: str) -> str:
        if not isinstance(value, str):
            what = "empty (null)" if value is None else f"no text ({type(value).__name__})"
            raise UsageError(f"{self.where}: {place}: field {column} is {what}: expected a text")
        return value


def whole(text: str) -> str:
    """The text with lone surrogates, which are valid JSON and no text, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text


def form(options: Mapping[str, str], where: str) -> Form | None:
    """The form that the options of a spec describe; None where they describe plain text. where: `FIELD = SPEC`.

    Raises UsageError for options that do not go together and for a template that misses a name, WorldError where the
    template cannot be read.
    """
    found = {name: options[name] for name in OPTIONS if name in options}
    if not found:
        return None
    accepted = "expected prompt= and response=, template= and response=, or messages= and template="
    if set(found) not in ({"prompt", "response"}, {"template", "response"}, {"messages", "template"}):
        raise UsageError(f"{where}: {' and '.join(f'{name}=' for name in found)}: {accepted}")
    if "column" in options:
        raise UsageError(f"{where}: column={options['column']} means nothing for records: {accepted}")
    if found.get("prompt", "") == found.get("response"):
        raise UsageError(f"{where}: response={found['response']}: expected another column than that of the prompt")
    template = None
    if file := found.pop("template", None):
        template = read_template(file, where, keep_line_break="messages" in found)
        if missing := sorted({"role", "content"} - template.names) if "messages" in found else []:
            raise UsageError(f"{where}: template {file}: no {{{missing[0]}}} in it: expected {{role}} and {{content}}")
        if "messages" in found and (others := sorted(template.names - {"role", "content"})):
            raise UsageError(f"{where}: template {file}: {{{others[0]}}}: expected {{role}} and {{content}} alone")
        if not template.names:
            raise UsageError(
                f"{where}: template {file}: no name in braces in it: expected at least one, as {{question}}"
            )
        if found.get("response") in template.names:
            raise UsageError(
                f"{where}: template {file}: {{{found['response']}}} is the response: expected columns of the prompt"
            )
    return Form(where, template=template, **found)
