"""Whose weights, and what their numbers mean. Tensors do not tell: those of MDLM, UDLM and Duo have the same names."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

OURS = "dfm_jax"  # `model_type` of the folders that `--format=hub` writes; their config.json holds the run's config


@dataclasses.dataclass(frozen=True)
class PublishedLayout:
    """What a project's weights mean.

    Attributes:
        prefix: of every tensor's name.
        source: of the noise: 'mask' or 'uniform'.
        parametrization: of the logits. At a masked position the leave-one-out law is the posterior; a revealed token is
            carried over, whatever the logits. The log score of a mask is the log of that law and a number that all
            tokens have: its softmax is the law.
        time_conditioning: whether the network is told sigma where config.json does not say; else it is told 0.
        loss: what it was trained with, under our name.
        packing: the form of the rows that it was trained on.
        mask_inside: whether the mask may be a token of the tokenizer's own, anywhere in the vocabulary.
    """

    prefix: str
    source: str
    parametrization: str
    time_conditioning: bool
    loss: str
    packing: str
    mask_inside: bool


# The reference's tensors say what the others' config.json says, and are read by `checkpoints.pytorch`.
REFERENCE = "reference"
LAYOUTS: dict[str, PublishedLayout | None] = {
    REFERENCE: None,
    "sedd": PublishedLayout("", "mask", "leave_one_out", True, "masked_elbo", "continuous", False),
    "mdlm": PublishedLayout("backbone.", "mask", "leave_one_out", False, "masked_elbo", "wrapped", True),
    "udlm": PublishedLayout("backbone.", "uniform", "leave_one_out", True, "time_reversal", "rows", False),
    "duo": PublishedLayout("backbone.", "uniform", "leave_one_out", True, "time_reversal", "wrapped", False),
}
# Weights with the names of these layouts that mean something else, and why they are refused.
REFUSED = {
    "bd3lm": "a network with block-causal attention; expected one whose positions all attend to each other",
    "ar": "an autoregressive network; expected one that is told its noisy tokens",
}
# Vocabularies whose tokenizer has a mask of its own: BERT's without and with case, and the characters of text8.
MASK_INSIDE = (30522, 28996, 35)


def which(config: Mapping[str, Any], tensors: Iterable[str], named: str | None = None) -> str:
    """The name of a layout, or `OURS`.

    Args:
        config: of config.json: its `model_type` and `architectures`, and whether it is laid out as SEDD's is.
        tensors: names of tensors.
        named: by the user, who knows better.

    Raises:
        ValueError: nothing tells, or what tells is refused or contradicts itself.
    """
    said = {str(config["model_type"]).lower()} if config.get("model_type") else set()
    architectures = config.get("architectures") or ()
    said |= {str(name).lower() for name in ([architectures] if isinstance(architectures, str) else architectures)}
    for name in sorted(said & set(REFUSED)):
        raise ValueError(f"config.json model_type = {name}: {REFUSED[name]}")
    if "cross_attn" in config or "block_size" in config:
        raise ValueError(f"config.json block_size = {config.get('block_size')}: {REFUSED['bd3lm']}")
    if named is not None:
        if named not in LAYOUTS:
            raise ValueError(f"layout = {named}: expected one of {', '.join(LAYOUTS)}")
        return named
    known = sorted(said & {*LAYOUTS, OURS})
    if len(known) > 1:
        raise ValueError(f"config.json says {' and '.join(known)}: expected one of them, or --layout=NAME")
    if known:
        return known[0]
    names = set(tensors)
    if not said and isinstance(config.get("graph"), Mapping) and "tokens" in config:
        return "sedd"
    if not said and any(name.endswith("blocks.0.qw.weight") for name in names):
        return REFERENCE
    shown = ", ".join(sorted(said)) or "(missing)"
    raise ValueError(
        f"config.json model_type = {shown}: expected {', '.join(LAYOUTS)}, or --layout with one of them: the tensors "
        "alone do not tell them apart"
    )
