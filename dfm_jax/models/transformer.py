"""The denoiser: a bidirectional transformer, told the time through adaptive layer norms (adaLN-zero)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from dfm_jax.kernels import attention
from dfm_jax.models.elementwise import add_gated, biased_gelu
from dfm_jax.models.layers import (
    Embedding,
    LayerNorm,
    Linear,
    Modulation,
    RMSNorm,
    TimeEmbedding,
    dropout_mask,
    precision,
    rotary_tables,
)

VOCABULARY_MULTIPLE = 128
LARGEST_LOG_EXPONENT = math.log(8.0)
ROWS, HEADS = ("data", "fsdp"), "tensor"  # mesh axes that split the batch, and the heads
_DTYPES = ("float32", "bfloat16", "float16")
_REMAT = ("none", "blocks", "dots")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The architecture; the defaults are the published model's.

    `vocab_size` is the number of states S = source.num_states: the data vocabulary, plus one with a mask
    source. `time_scale` and `time_conditioning` shape what the model makes of its time argument; whether that
    argument is t or kappa(t) (`model.time_input`) is the caller's: the model takes the number it is given.
    """

    vocab_size: int
    hidden_size: int = 768
    cond_dim: int = 128  # width of the time embedding
    length: int = 1024  # longest sequence; a shorter one is accepted
    n_blocks: int = 12
    n_heads: int = 12
    dropout: float = 0.1
    mlp_ratio: int = 4
    attention: str = "auto"  # implementation, as kernels.attention takes it; 'auto' lets it choose
    remat: str = "none"  # backward pass recomputes 'none' of the products, all but them ('dots'), or whole 'blocks'
    compute_dtype: str = "float32"  # of the matrix products and the attention of blocks and final layer
    residual_dtype: str = "float32"  # of the residual stream
    time_scale: float = 1.0  # factor on the time before its sinusoids
    time_conditioning: bool = True  # False: the time is not looked at (0 is embedded instead)
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    tie_embeddings: bool = False  # the head's matrix is the embedding's, drawn from N(0, 1/hidden_size)
    token_exponents: bool = False  # each data token has the exponent of its schedule (GenMD4) as a parameter

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "cond_dim", "length", "n_blocks", "n_heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected a positive integer")
        if self.hidden_size % (2 * self.n_heads):
            raise ValueError(
                f"n_heads = {self.n_heads}: expected n with hidden_size={self.hidden_size} a multiple of 2n"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: expected 0 <= dropout < 1")
        for name, accepted in (("remat", _REMAT), ("compute_dtype", _DTYPES), ("residual_dtype", _DTYPES)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} = {getattr(self, name)}: expected {', '.join(accepted)}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads

    @property
    def padded_vocab_size(self) -> int:
        """Stored vocabulary rows: a multiple of 128, which divides over devices and fills matrix units."""
        return math.ceil(self.vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class Block(nnx.Module):
    """Attention, then MLP; each normed, shifted and scaled before, gated after, as the time says.

    With zero gates, as at initialisation, the block is the identity.
    """

    def __init__(self, config: TransformerConfig, key: Array):
        c, size = config, config.hidden_size
        keys = jax.random.split(key, 5)
        self.attention_norm = LayerNorm(size)
        self.qkv = Linear(keys[0], size, (3, size), bias=False)
        self.query_norm = RMSNorm(c.head_dim) if c.qk_norm else None
        self.key_norm = RMSNorm(c.head_dim) if c.qk_norm else None
        self.attention_out = Linear(keys[1], size, (size,), bias=False)
        self.mlp_norm = LayerNorm(size)
        self.mlp_up = Linear(keys[2], size, (c.mlp_ratio * size,), bias=True)
        self.mlp_down = Linear(keys[3], c.mlp_ratio * size, (size,), bias=True)
        self.modulation = Modulation(keys[4], c.cond_dim, 6, size)
        self.config = config

    def __call__(
        self,
        x: Array,
        c: Array,
        rotary: tuple[Array, Array],
        keys: Array | None,
        *,
        mesh: Mesh | None = None,
    ) -> Array:
        """x (B, L, D) residual_dtype, c (B, cond_dim) float32, keys (B, 2) typed or None -> as x.

        Between two products only their operands are kept for the backward pass, in compute_dtype, and the mask of a
        dropout: the float32 steps in between (`elementwise`) are several times as large (60 GiB of 90 at 64 x 1024
        tokens of the published model), and faster computed again than written and read.
        """
        dtype, rate = jnp.dtype(self.config.compute_dtype), self.config.dropout

        def kept(index: int) -> Array | None:
            return None if keys is None or not rate else dropout_mask(keys[:, index], x.shape[1:], rate)

        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = self.modulation(c)
        h = self._attention(self.attention_norm(x, shift_attention, scale_attention, dtype), rotary, mesh)
        x = add_gated(x, gate_attention, h, None, kept(0), rate)
        h, bias = self.mlp_up.parts(self.mlp_norm(x, shift_mlp, scale_mlp, dtype), dtype)
        h, bias = self.mlp_down.parts(biased_gelu(h, bias), dtype)
        return add_gated(x, gate_mlp, h, bias, kept(1), rate)

    @jax.named_scope("attention")
    def _attention(self, h: Array, rotary: tuple[Array, Array], mesh: Mesh | None) -> Array:
        dtype = jnp.dtype(self.config.compute_dtype)
        qkv = self.qkv(h, dtype).reshape(*h.shape[:2], 3, self.config.n_heads, self.config.head_dim)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        implementation = None if self.config.attention == "auto" else self.config.attention
        split = {"mesh": mesh, "batch_axes": ROWS, "head_axis": HEADS}
        out = attention.attention(q, k, v, rotary=rotary, implementation=implementation, **split)
        return self.attention_out(out.reshape(h.shape), dtype)


class Transformer(nnx.Module):
    """x_t (B, L) and t (B,) -> features (B, L, D); `logits` of them are those of the vocabulary's S states.

    A plain pytree: `jax.jit`, `jax.grad` and optax take it as it is. The blocks are one module with a leading
    axis of n_blocks on each array. Vocabulary rows are stored padded (`config.padded_vocab_size`); the
    padding is zero, takes no part in `logits`, and must be masked by whoever uses `head_kernel()` directly
    (`num_valid=config.vocab_size`).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        c, size = config, config.hidden_size
        self.embedding = Embedding(
            rngs.params(),
            c.vocab_size,
            c.padded_vocab_size,
            size,
            stddev=1 / math.sqrt(size) if c.tie_embeddings else 1.0,
        )
        self.time_embedding = TimeEmbedding(rngs.params(), c.cond_dim, c.time_scale)
        self.blocks = jax.vmap(lambda key: Block(c, key))(jax.random.split(rngs.params(), c.n_blocks))
        self.final_norm = LayerNorm(size)
        self.final_modulation = Modulation(rngs.params(), c.cond_dim, 2, size)
        self.head = Head(size, c.padded_vocab_size, tied=c.tie_embeddings)
        # 0 at first, where the path is the plain mask path and the slope of log w is 1.
        self.log_exponents = nnx.Param(jnp.zeros((c.vocab_size - 1,), jnp.float32)) if c.token_exponents else None
        self.config = config

    def exponents(self) -> Array:
        """w (V,) float32, where the model has them; one for each state but the mask. Raises ValueError else.

        From 1, the slowest token's, to 8. A factor common to all is another clock, on which no bound depends; this one
        keeps the variance of the loss, which at squared times is infinite for w <= 1/2.
        """
        if self.log_exponents is None:
            raise ValueError("token_exponents = False: expected True for a model that learns its schedules")
        half = LARGEST_LOG_EXPONENT / 2
        log_w = half * jnp.tanh(self.log_exponents[...] / half)
        return jnp.exp(log_w - jax.lax.stop_gradient(log_w.min()))

    def __call__(
        self,
        x_t: Array,
        t: Array,
        *,
        dropout_keys: Array | None = None,
        mesh: Mesh | None = None,
        unroll: int = 1,
    ) -> Array:
        """Final-layer features.

        Args:
            x_t: (B, L) integer states in [0, vocab_size), L <= config.length.
            t: (B,) float32 time in [0, 1], or kappa(t) for a model trained on it.
            dropout_keys: (B,) typed keys, one per row of the global batch at this step; None is evaluation.
            mesh: with the axes of `ROWS` and `HEADS`, where the batch is split over one: a kernel of ours has to be
                told. None inside `jax.shard_map`, whose rows are local.
            unroll: blocks written out per turn of the loop over the blocks, at most n_blocks; 0 is all of them.

        Returns:
            (B, L, D) float32.

        Raises:
            ValueError: a shape is another one, or the sequence is longer than the model's.
        """
        if x_t.ndim != 2 or t.shape != x_t.shape[:1]:
            raise ValueError(f"x_t = {x_t.shape}, t = {t.shape}: expected x_t (B, L) and t (B,)")
        if x_t.shape[1] > self.config.length:
            raise ValueError(f"x_t = {x_t.shape}: expected a length of at most {self.config.length}")
        c = self.time_embedding(t if self.config.time_conditioning else jnp.zeros_like(t))
        rotary = rotary_tables(x_t.shape[1], self.config.head_dim)

        unroll = unroll or self.config.n_blocks
        looped = unroll < self.config.n_blocks

        def step(x: Array, layer: tuple[Block, Array]) -> tuple[Array, None]:
            block, index = layer
            keys = None if dropout_keys is None else _block_keys(dropout_keys, index)
            return block(x, c, rotary, keys, mesh=mesh), None

        x = self.embedding(x_t).astype(self.config.residual_dtype)
        layers = (self.blocks, jnp.arange(self.config.n_blocks, dtype=jnp.uint32))
        x, _ = jax.lax.scan(_rematerialised(step, self.config.remat, looped), x, layers, unroll=unroll)
        shift, scale = self.final_modulation(c)
        return self.final_norm(x, shift, scale, jnp.float32)

    def head_kernel(self) -> Array:
        """The vocabulary head's matrix, (D, padded S) float32: the embedding's transpose if they are tied."""
        return self.embedding.table[...].T if self.head.kernel is None else self.head.kernel[...]

    def head_bias(self) -> Array:
        """The vocabulary head's bias, (padded S,) float32."""
        return self.head.bias[...]

    def logits(self, features: Array, *, suppress: int | None = None) -> Array:
        """Logits (..., S) float32 of features (..., D): for small uses, S numbers per position are kept.

        The product's operands are rounded to compute_dtype, its result never: a log-softmax of bfloat16
        logits is wrong in the third digit, and 1 - p becomes exactly 0 near t = 1.

        suppress: a state whose logit becomes -inf. Data never holds the mask token, so the exact posterior
        gives it probability 0, and any mass a model puts on it is lost to the likelihood and can be sampled
        as a token of the text. The published models were trained and scored without this, so their numbers
        need it off. It is applied here, where features are scored, because features do not know what they
        will be asked.
        """
        dtype = jnp.dtype(self.config.compute_dtype)
        logits = jnp.tensordot(
            features.astype(dtype),
            self.head_kernel().astype(dtype),
            axes=1,
            precision=precision(dtype),
            preferred_element_type=jnp.float32,
        )
        logits = (logits + jnp.broadcast_to(self.head_bias(), logits.shape))[..., : self.config.vocab_size]
        return logits if suppress is None else logits.at[..., suppress].set(-jnp.inf)


class Head(nnx.Module):
    """The vocabulary's matrix (D, rows), absent if tied to the embedding, and bias (rows,), both zero at
    first."""

    def __init__(self, width: int, rows: int, *, tied: bool):
        self.kernel = None if tied else nnx.Param(jnp.zeros((width, rows), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((rows,), jnp.float32))


def count_parameters(config: TransformerConfig) -> int:
    """Trained numbers of the model, without the padding of its vocabulary rows."""
    model = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))
    tables = 1 if config.tie_embeddings else 2
    return stored - (config.padded_vocab_size - config.vocab_size) * (tables * config.hidden_size + 1)


def _block_keys(keys: Array, index: Array) -> Array:
    """(B,) keys -> (B, 2) keys: block `index`'s own, for its two dropouts."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, index)))(keys)


def _rematerialised(step, remat: str, looped: bool):
    if remat == "blocks":
        return jax.checkpoint(step, prevent_cse=not looped)
    if remat == "dots":
        policy = jax.checkpoint_policies.save_only_these_names("product")
        return jax.checkpoint(step, prevent_cse=not looped, policy=policy)
    return step
