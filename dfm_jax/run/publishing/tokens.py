"""Which tokenizer goes with a published vocabulary, and which of its ids is the mask."""

import dataclasses
import pathlib

from dfm_jax.checkpoints.published.layouts import LAYOUTS, MASK_INSIDE
from dfm_jax.data import get_tokenizer, vocabulary_size
from dfm_jax.data.tokenizers import NAMES, changed
from dfm_jax.runtime.errors import UsageError

_GPT2 = 50257


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What is known of a published vocabulary before its weights are read.

    tokenizer: the name that the user gave or that the folder's own files give; '' for none. mask_id: the user's.
    """

    tokenizer: str
    mask_id: int | None

    def mask(self, layout: str, states: int) -> int | None:
        """The mask's id among the `states` of a layout's network; None is the layout's own, the last.

        Raises UsageError where the vocabulary is one that has a mask inside and nothing tells where.
        """
        entry = LAYOUTS[layout]
        if entry is None or not entry.mask_inside or entry.source != "mask":
            return self.mask_id
        told = self._told(states)
        if told is not None and self.mask_id not in (None, told):
            raise UsageError(f"mask_id = {self.mask_id}: expected {told}, the mask of {self.tokenizer}")
        if told is None and self.mask_id is None and not self.tokenizer and states in MASK_INSIDE:
            raise UsageError(
                f"mask_id = (missing): expected --mask_id=ID or --config.tokenizer.name: vocabularies of {states} "
                "tokens have a mask of their own, and these files do not say which"
            )
        return self.mask_id if told is None else told

    def _told(self, states: int) -> int | None:
        """The mask that the tokenizer has among `states`."""
        if not self.tokenizer:
            return None
        if (change := changed.parts(self.tokenizer)) is not None and change[1] == "without":
            return change[2]
        tokenizer = get_tokenizer(self.tokenizer)
        mask = getattr(tokenizer, "special", {}).get("mask")
        return mask if tokenizer.vocab_size == states else None

    def name(self, states: int, mask_id: int | None) -> str:
        """The tokenizer of a network with so many states, of which `mask_id` is the mask (None: no mask).

        Raises UsageError where the tokenizer that was told has more ids than the network.
        """
        tokens = states - (mask_id is not None)
        if mask_id is not None and mask_id != states - 1:  # the mask's id is inside the tokenizer's own
            base = self.tokenizer or f"ids:{states}"
            if vocabulary_size(base) == tokens:
                return base
            return f"{self._grown(base, states)}:without={mask_id}"
        if not self.tokenizer:
            return self._known(tokens)
        if mask_id is not None and vocabulary_size(self.tokenizer) == states and self._told(states) == mask_id:
            return f"{self.tokenizer}:without={mask_id}"
        return self._grown(self.tokenizer, tokens)

    def _known(self, tokens: int) -> str:
        """GPT-2's for its size, and for one more, which is a padding token's; else ids without a text."""
        names = {_GPT2: "gpt2", _GPT2 + 1: f"gpt2:size={_GPT2 + 1}"}
        return names.get(tokens, f"ids:{tokens}")

    def _grown(self, name: str, tokens: int) -> str:
        size = vocabulary_size(name)
        if size > tokens:
            raise UsageError(
                f"config.tokenizer.name = {name}: expected a tokenizer of at most {tokens} tokens, which the network "
                f"has, not {size}"
            )
        return name if size == tokens else f"{name}:size={tokens}"


def of_files(folder: pathlib.Path, place: str) -> str:
    """The tokenizer whose tokenizer.json is in the folder that `place` names, '' where there is none."""
    reads = any(name.startswith("hf:") for name in NAMES)
    return f"hf:{place}" if reads and (folder / "tokenizer.json").is_file() else ""
