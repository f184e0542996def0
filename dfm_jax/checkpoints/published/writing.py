"""A run's weights in the layout of MDLM, for the published modelling code; none of that code is here."""

import os
import pathlib
from typing import Any

from dfm_jax.checkpoints.published import names
from dfm_jax.checkpoints.published.layouts import LAYOUTS
from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.checkpoints.safetensors_file import write_safetensors
from dfm_jax.models.transformer import Transformer, TransformerConfig
from dfm_jax.runtime import files

MDLM = "mdlm"
# The repository whose modelling code reads these files; `transformers` fetches it with trust_remote_code=True.
_CODE = "kuleshov-group/mdlm-owt"
# What the published network is, by fields of `TransformerConfig`.
_ONLY = {"time_scale": 1.0, "qk_norm": False, "tie_embeddings": False, "mlp_ratio": 4, "token_exponents": False}


def check(config: TransformerConfig) -> None:
    """Raises ValueError naming the first option that MDLM's network does not have."""
    for name, value in _ONLY.items():
        if getattr(config, name) != value:
            raise ValueError(f"model.{name} = {getattr(config, name)}: expected {value} in the layout of MDLM")


def write(
    folder: str | os.PathLike, model: Transformer, config: TransformerConfig, *, mask_id: int | None = None
) -> None:
    """Writes config.json and model.safetensors into `folder`, which is made.

    mask_id: the mask's id in the vocabulary that is written; None is the last one, where it is here.

    Raises:
        ValueError: the network has an option that MDLM's has not.
    """
    check(config)
    layout = LAYOUTS[MDLM]
    assert layout is not None
    last = config.vocab_size - 1
    tensors = convert.to_tensors(model, config)
    if mask_id is not None and mask_id != last:
        tensors = names.mask_back(tensors, mask_id)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(
        folder / "model.safetensors", names.from_reference(tensors, config, layout.prefix), {"format": "pt"}
    )
    content: dict[str, Any] = {
        "architectures": ["MDLM"],
        "model_type": MDLM,
        "auto_map": {
            "AutoConfig": f"{_CODE}--configuration_mdlm.MDLMConfig",
            "AutoModelForMaskedLM": f"{_CODE}--modeling_mdlm.MDLM",
        },
        "vocab_size": config.vocab_size,
        "model_length": config.length,
        "hidden_dim": config.hidden_size,
        "cond_dim": config.cond_dim,
        "n_blocks": config.n_blocks,
        "n_heads": config.n_heads,
        "dropout": config.dropout,
        "time_conditioning": config.time_conditioning,
        "return_dict": False,
        "torch_dtype": "float32",
    }
    files.write_json_atomically(folder / "config.json", content, durable=True)
