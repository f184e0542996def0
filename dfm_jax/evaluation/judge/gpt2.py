"""GPT-2 of any size, which judges generated text: Flax modules, and the Hugging Face weights."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dfm_jax.kernels import vocab_head

HUB_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2. `dtype` is that of the matrix products and of the stored kernels."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5
    dtype: str = "float32"

    @classmethod
    def from_json(cls, path: pathlib.Path, dtype: str = "float32") -> "GPT2Config":
        """Reads a `config.json` of `transformers`.

        Raises:
            ValueError: another architecture, or a variant of GPT-2 that this module does not support.
        """
        given = _json(path)
        computed = {
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "n_inner": (None, 4 * given.get("n_embd", 0)),
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        }
        for name, accepted in computed.items():
            accepted = accepted if isinstance(accepted, tuple) else (accepted,)
            if given.get(name, accepted[0]) not in accepted:
                raise ValueError(f"{path}: {name} = {given[name]!r}: expected {accepted[0]!r}")
        sizes = {field.name for field in dataclasses.fields(cls)} - {"dtype"}
        return cls(**{name: value for name, value in given.items() if name in sizes}, dtype=dtype)


class Block(nnx.Module):
    """Pre-norm causal self-attention and MLP."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        width, dtype = config.n_embd, jnp.dtype(config.dtype)

        def linear(inputs, outputs):
            return nnx.Linear(inputs, outputs, dtype=dtype, param_dtype=dtype, rngs=rngs)

        def norm():
            return nnx.LayerNorm(width, epsilon=config.layer_norm_epsilon, dtype=jnp.float32, rngs=rngs)

        self.ln_1, self.ln_2 = norm(), norm()
        self.qkv, self.attn_out = linear(width, 3 * width), linear(width, width)
        self.mlp_in, self.mlp_out = linear(width, 4 * width), linear(4 * width, width)
        self.n_head = config.n_head

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        heads = (batch, length, 3, self.n_head, width // self.n_head)
        q, k, v = jnp.moveaxis(self.qkv(self.ln_1(x)).reshape(heads), 2, 0)
        with jax.numpy_dtype_promotion("standard"):  # jax's own code mixes bfloat16 and float32 here
            attended = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
        x = x + self.attn_out(attended).astype(x.dtype)
        return x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.ln_2(x)), approximate=True)).astype(x.dtype)


class GPT2(nnx.Module):
    """A GPT-2 language model; the head is the token embedding."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.config = config
        self.wte = nnx.Embed(config.vocab_size, config.n_embd, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.wpe = nnx.Embed(config.n_positions, config.n_embd, dtype=dtype, param_dtype=dtype, rngs=rngs)
        keys = jax.random.split(rngs.params(), config.n_layer)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        self.ln_f = nnx.LayerNorm(config.n_embd, epsilon=config.layer_norm_epsilon, dtype=jnp.float32, rngs=rngs)

    def features(self, tokens: jax.Array) -> jax.Array:
        """(B, L) int32 tokens -> (B, L, n_embd) float32 final-layer features. Raises ValueError for too long rows."""
        if tokens.shape[1] > self.config.n_positions:
            raise ValueError(f"length = {tokens.shape[1]}: expected at most {self.config.n_positions}")
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x = self.wte(tokens).astype(jnp.float32) + self.wpe(positions).astype(jnp.float32)[None]
        x, _ = jax.lax.scan(lambda x, block: (block(x), None), x, self.blocks)
        return self.ln_f(x)

    def logits(self, tokens: jax.Array) -> jax.Array:
        """(B, L) int32 tokens -> (B, L, vocab_size) float32 logits, for small models and tests."""
        features = self.features(tokens).astype(self.wte.embedding[...].dtype)
        return jnp.einsum("bld,vd->blv", features, self.wte.embedding[...], preferred_element_type=jnp.float32)

    def next_token_log_probs(self, tokens: jax.Array) -> jax.Array:
        """log p(x_{i+1} | x_0..x_i): (B, L) int32 -> (B, L - 1) float32 nats. It makes no (B, L, vocab_size) array."""
        features = self.features(tokens)[:, :-1].reshape(-1, self.config.n_embd)
        kernel = self.wte.embedding[...].T
        head = vocab_head.Head(kernel, jnp.zeros((self.config.vocab_size,), jnp.float32))
        query = vocab_head.Query(tokens[:, 1:].reshape(-1, 1))
        answer = vocab_head.log_probs(head, query, features.astype(kernel.dtype))
        return answer.at_ids.reshape(tokens.shape[0], -1)


def _source_name(path: str) -> str:
    """The Hugging Face name for the path of one of our leaves, with `{}` for the layer."""
    for ours, theirs in (
        ("blocks.", "h.{}."),
        (".qkv.", ".attn.c_attn."),
        (".attn_out.", ".attn.c_proj."),
        (".mlp_in.", ".mlp.c_fc."),
        (".mlp_out.", ".mlp.c_proj."),
    ):
        path = path.replace(ours, theirs, 1)
    stem, leaf = path.rsplit(".", 1)
    # The original's Conv1D stores (in, out), like a Flax kernel.
    return f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"


def load_gpt2(folder: str | os.PathLike, dtype: str = "float32") -> GPT2:
    """Reads a folder as `transformers` saves it: `config.json` and `model.safetensors` (or its shards).

    Args:
        folder: a local folder.
        dtype: 'float32' or 'bfloat16', of the stored kernels and of the matrix products.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another architecture, or a tensor missing or of another shape.
    """
    folder = pathlib.Path(folder)
    config = GPT2Config.from_json(folder / "config.json", dtype)
    # The hub's own files lack the prefix that `save_pretrained` writes.
    tensors = {
        name.removeprefix("transformer."): value for file in _files(folder) for name, value in _read(file).items()
    }

    def fill(path, leaf):
        source = _source_name(jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"))
        stacked = "{}" in source
        names = [source.format(layer) for layer in range(config.n_layer)] if stacked else [source]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"{folder}: tensor {missing[0]} is missing")
        value = np.stack([tensors[name] for name in names]) if stacked else tensors[source]
        if value.shape != leaf.shape:
            raise ValueError(f"{folder}: {source} has shape {value.shape}: expected {leaf.shape}")
        return jnp.asarray(value.astype(leaf.dtype))

    abstract = jax.eval_shape(lambda key: GPT2(config, rngs=nnx.Rngs(key)), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, abstract)


def check_gpt2(folder: pathlib.Path, vocab_size: int) -> None:
    """Whether `load_gpt2` will find its files in the folder, for a tokenizer of `vocab_size`; reads no tensor.

    Raises as `load_gpt2`, and ValueError where the model has fewer tokens.
    """
    config = GPT2Config.from_json(folder / "config.json")
    if config.vocab_size < vocab_size:
        raise ValueError(f"{folder}: vocab_size = {config.vocab_size}: expected {vocab_size}, the tokenizer's")
    for file in _files(folder):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of the tensors: one, or the shards that the index names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(_json(index)["weight_map"].values()))]


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name; ValueError where it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def find_gpt2(name: str) -> pathlib.Path:
    """The local folder of a GPT-2's weights: `name` itself, the hub's cache, or a download.

    Args:
        name: a folder, a short name (`gpt2-large`) or a hub name (`openai-community/gpt2-large`).

    Raises:
        FileNotFoundError: there is no such folder and the hub cannot be reached. The error says how to get the files.
    """
    if (pathlib.Path(name) / "config.json").exists():
        return pathlib.Path(name)
    repository = HUB_NAMES.get(name, name)
    reason = "not a folder with config.json and model.safetensors"
    if name in HUB_NAMES or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        import huggingface_hub  # slow to import, and only wanted here

        wanted = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
        try:
            return pathlib.Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
        except Exception as error:  # offline, no such name, no permission: one answer for all of them
            reason = f"not in the local cache, and the hub answered {type(error).__name__}"
    raise FileNotFoundError(
        f"{name}: {reason}; on a machine with network run `hf download {repository} config.json "
        "model.safetensors --local-dir DIR` and give DIR"
    )


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: nested too deep; expected the JSON of a GPT-2") from None
