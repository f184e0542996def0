"""Every field of a config, stated once: type, default, meaning, unit, and what it accepts.

From here come the defaults, the checks, `--help=config`, docs/config.md, what a run that continues may change, and what
makes a checkpoint another network. The defaults are the published recipe: the uniform source with the generalized-KL
loss, 170 M parameters on FineWeb-EDU. A disabled feature is 0, never None. The default of a field that is added later
(`since`) is what the program did before it: a run of an older version is continued with it.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from dfm_jax.config.accepted import (
    ABOVE_ZERO,
    ANYTHING,
    AXIS,
    COUNT,
    FRACTION,
    NAME,
    NAMES,
    NON_NEGATIVE,
    POSITIVE,
    PROPORTION,
    SHARE,
    SWITCH,
    TIMES,
    TIMES_OR_0,
    Accepted,
    matching,
    one_from,
    one_of,
)
from dfm_jax.config.statement import (
    FREE,
    LATER,
    MORE_CHANGES,
    PACE,
    SAME_TOKENIZER,
    SAME_TOKENS,
    Field,
    Group,
    field,
    stated,
)

# STEP:WEIGHT/WEIGHT... of a mixture; `data.views.weights` reads it.
CHANGE = r"\d+:[^/:]+(/[^/:]+)*"


# Names that other rooms have in a table.
def optimizers() -> Iterable[str]:
    from dfm_jax import optim

    return optim.NAMES


def objectives() -> Iterable[str]:
    from dfm_jax import flow

    return flow.OBJECTIVES


def schedulers() -> Iterable[str]:
    from dfm_jax import flow

    return flow.SCHEDULERS


@dataclasses.dataclass(frozen=True)
class Data(Group):
    """What the network learns from, and what it is evaluated on while it learns."""

    train: str = field(
        "fineweb-edu",
        "corpus to train on: a name, a path or glob of files, NAME@PATH, or several with weights, A=0.7,B=0.3",
        NAME,
        continues=SAME_TOKENS,
        path=True,
        also=("dataset", "corpus", "train_data", "train_path", "train_file", "data_path", "data_dir"),
    )
    valid: str = field(
        "wikitext103",
        "corpus to evaluate the loss on, written as data.train; '' = documents of data.train that are not trained on, "
        "see data.held_out",
        Accepted("a name or a path, or nothing for a part of data.train", lambda v: True),
        continues=FREE,
        path=True,
        also=("val", "validation", "valid_data", "val_data", "eval_data", "test"),
    )
    held_out: float = field(
        0.05,
        "share of the documents of data.train that is held out where data.valid is empty, chosen by their contents",
        Accepted("a number above 0 and below 1", lambda v: 0 < v < 1),
        since="0.2",
        also=("valid_share", "val_split", "validation_split", "valid_fraction", "val_fraction", "test_size"),
    )
    num_workers: int = field(
        8,
        "threads that tokenise; 0 = one per core",
        COUNT,
        unit="threads",
        continues=FREE,
        also=("workers", "n_workers", "num_threads", "num_proc"),
    )
    cache_dir: str = field(
        "data", "folder of the prepared token shards", NAME, continues=FREE, path=True, also=("cache", "cache_path")
    )
    on_error: str = field(
        "stop",
        "at what cannot be read: 'stop', or 'skip' it, counted and named in the manifest",
        one_of("stop", "skip"),
        continues=FREE,
        since="0.2",
        also=("errors", "skip_errors", "ignore_errors"),
    )
    max_error_share: float = field(
        0.5,
        "largest share of the rows, and of the files, that 'skip' may leave out",
        PROPORTION,
        continues=FREE,
        since="0.2",
        also=("max_errors", "error_rate"),
    )
    special: str = field(
        "text",
        "special tokens in a text or prompt, such as <|endoftext|>: 'text', or the tokens that they name ('parse')",
        one_of("text", "parse"),
        continues=SAME_TOKENS,
        since="0.2",
        also=("parse_special", "special_tokens", "add_special_tokens"),
    )
    long_records: str = field(
        "cut",
        "records that are longer than model.length: 'cut' the response, or 'skip' the record; either is counted",
        one_of("cut", "skip"),
        since="0.2",
        also=("truncate", "truncation", "overlong", "max_length"),
    )
    reweight: tuple[str, ...] = field(
        (),
        "other weights of a mixture from some update on, one a corpus: '2000:0.5/0.5'",
        Accepted("STEP:WEIGHT/WEIGHT..., as 2000:0.5/0.5", lambda v: all(re.fullmatch(CHANGE, text) for text in v)),
        continues=MORE_CHANGES,
        since="0.2",
        also=("weights", "mixture_weights", "probs", "probabilities"),
    )
    packing: str = field(
        "continuous",
        "how text is cut into blocks: 'continuous', as it comes; 'wrapped', with an end of text at both ends, as "
        "MDLM's and Duo's; 'rows', one document a row, cut or padded, its padding not scored, as UDLM's LM1B. "
        "'reference' gives the published WikiText blocks, of the validation text alone",
        one_of("continuous", "wrapped", "rows", "reference"),
        continues=FREE,
    )


@dataclasses.dataclass(frozen=True)
class Tokenizer(Group):
    """Text to tokens."""

    name: str = field(
        "gpt2",
        "'gpt2' (50257 tokens), 'bytes' (256 and an end of text), 'hf:NAME_OR_FOLDER' (a tokenizer.json, of the hub or "
        "a folder), 'char:text8' (a to z and the blank) or 'ids:N' (N tokens without a text); NAME:without=ID takes "
        "out a mask token of its own, NAME:size=N adds ids without a text",
        matching(
            "gpt2, bytes, hf:NAME_OR_FOLDER, char:text8 or ids:N with N > 0",
            r"hf:.*\S.*|(gpt2|bytes|char:text8|ids:0*[1-9]\d{0,8})(:without=\d{1,9}|:size=\d{1,9})*",
        ),
        continues=SAME_TOKENIZER,
        network=True,
        also=("tokenizer", "vocab", "vocab_size", "vocabulary", "type"),
    )


@dataclasses.dataclass(frozen=True)
class Training(Group):
    """Batches, checkpoints and evaluations of a run."""

    batch_size: int = field(
        512,
        "sequences per update, over all devices",
        POSITIVE,
        unit="sequences",
        also=("bs", "batch", "global_batch_size", "train_batch_size", "micro_batch_size"),
        auto=True,
    )
    grad_accum: int = field(
        1,
        "parts that each batch is computed in, one after the other",
        POSITIVE,
        continues=FREE,
        also=("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accumulation", "accum", "accum_steps"),
    )
    unroll: int = field(
        0,
        "blocks written out per turn of the loop over them; 0 = all. A loop copies what it keeps for the backward "
        "pass, a quarter of a GPU's memory traffic, and compiles three times as fast",
        COUNT,
        unit="blocks",
        continues=FREE,
        also=("scan_unroll",),
    )
    snapshot: int = field(
        2000,
        "steps between checkpoints; 0 = only at the end",
        COUNT,
        unit="steps",
        continues=FREE,
        also=("save_every", "save_steps", "save_freq", "checkpoint_every", "save_interval", "snapshot_freq"),
        auto=True,
    )
    eval_freq: int = field(
        20000,
        "steps between evaluations of the loss; 0 = only at the end",
        COUNT,
        unit="steps",
        continues=FREE,
        also=("eval_every", "eval_steps", "eval_interval", "val_check_interval"),
        auto=True,
    )
    perplexity_freq: int = field(
        20000, "steps between generations with a judge; 0 = never", COUNT, unit="steps", continues=FREE
    )
    seed: int = field(42, "of the initialisation, the data order and all noise", COUNT, also=("random_seed", "rng"))
    max_bad_steps: int = field(
        10,
        "updates in a row with a non-finite loss or gradient that end the run",
        POSITIVE,
        unit="updates",
        continues=FREE,
        also=("patience", "nan_tolerance"),
    )
    deterministic: bool = field(
        False,
        "the same bits in every run on the same GPUs, at a cost; see docs/scale.md",
        SWITCH,
        continues=FREE,
        since="0.2",
        also=("determinism", "reproducible", "use_deterministic_algorithms"),
    )
    auto: tuple[str, ...] = field(
        (),
        "fields whose values training finds from the text and the device before its first step (docs/own_text.md); a "
        "field is put here by the value 'auto', and a run's config.json has the values that were found",
        Accepted("names of fields that may be auto", lambda v: all(name in TABLE and TABLE[name].auto for name in v)),
        continues=FREE,
        since="0.2",
    )
    compilation_cache: str = field(
        "auto",
        "where compiled programs are kept between starts: 'auto' is the user's cache folder, '' nowhere, else a folder",
        Accepted(
            "auto, a folder, or nothing for no cache",
            lambda v: v.strip().lower() not in ("off", "none", "no", "false", "true", "0", "1"),
        ),
        continues=FREE,
        since="0.2",
        path=True,
        also=("compile_cache", "jax_cache", "cache"),
    )


@dataclasses.dataclass(frozen=True)
class Optim(Group):
    """The optimizer and its learning rate."""

    name: str = field(
        "adamw",
        "optimizer; 'muon' makes each matrix's momentum orthogonal, and is AdamW for embedding, head, norms and biases",
        one_from(optimizers),
        also=("optimizer", "optimiser", "type"),
    )
    lr: float = field(
        3e-4,
        "peak learning rate",
        ABOVE_ZERO,
        continues=FREE,
        also=("learning_rate", "lrate", "max_lr", "peak_lr", "base_lr"),
        auto=True,
    )
    beta1: float = field(
        0.9,
        "decay of the first moment; Muon's own is 0.95, 'adafactor' has none",
        FRACTION,
        also=("b1", "betas", "adam_beta1", "momentum"),
    )
    beta2: float = field(
        0.95,
        "decay of the second moment; that of 'adafactor' is 1 - s**-0.8 at update s",
        FRACTION,
        also=("b2", "adam_beta2"),
    )
    eps: float = field(
        1e-8,
        "added to the root of the second moment of 'adamw' and of Muon's AdamW",
        ABOVE_ZERO,
        also=("epsilon", "adam_eps", "adam_epsilon"),
    )
    weight_decay: float = field(
        0.03, "decoupled weight decay, per unit of learning rate", NON_NEGATIVE, continues=FREE, also=("wd", "l2")
    )
    decay: str = field(
        "all", "parameters that decay: 'all' (published) or 'matrices' (no biases, scales, exponents)",
        one_of("all", "matrices"),
    )  # fmt: skip
    warmup: int = field(
        2500,
        "steps of linear warm-up",
        COUNT,
        unit="steps",
        continues=FREE,
        also=("warmup_steps", "warmup_iters", "num_warmup_steps", "lr_warmup_steps"),
        auto=True,
    )
    n_iters: int = field(
        1_000_000,
        "steps of the run; the cosine of the learning rate ends here",
        POSITIVE,
        unit="steps",
        continues=LATER,
        also=("max_steps", "num_steps", "total_steps", "train_steps", "max_iters", "iters", "iterations", "num_iters",
              "n_steps", "epochs"), auto=True,
    )  # fmt: skip
    eta_min_ratio: float = field(
        0.1, "last learning rate / peak", SHARE, continues=FREE, also=("min_lr", "min_lr_ratio", "final_lr", "eta_min")
    )
    grad_clip: float = field(
        1.0,
        "largest global norm of the gradient; 0 = off",
        NON_NEGATIVE,
        continues=FREE,
        also=("clip", "max_grad_norm", "gradient_clip", "gradient_clip_val", "clip_grad", "clip_norm", "grad_norm"),
    )
    exponents_lr: float = field(
        0.1, "learning rate of the exponents that 'genmd4' learns / that of the network", ABOVE_ZERO
    )
    ema_decay: float = field(
        0.0,
        "of the averaged parameters that evaluation and sampling use; 0 = off",
        FRACTION,
        continues=PACE,
        also=("ema", "ema_rate", "polyak"),
    )


@dataclasses.dataclass(frozen=True)
class Flow(Group):
    """The path from noise to data, and the loss that learns it."""

    path: str = field(
        "mixture",
        "family of paths; 'mixture' is the published one",
        one_of("mixture", "three_term", "kinetic_optimal", "genmd4", "metric"),
        network=True,
        also=("prob_path", "probability_path"),
    )
    noise: float = field(
        0.5, "share of uniform noise on the way of 'three_term': noise * kappa * (1 - kappa)", PROPORTION, network=True
    )
    exponents: str = field(
        "",
        "of 'genmd4', one exponent per token: '' = all 1, 'learned', or a .npy file of (vocabulary,) numbers > 0. A "
        "factor common to all only changes the schedule; with numbers <= 1/2 the loss has no variance",
        Accepted("learned, a file that ends in .npy, or nothing", lambda v: v in ("", "learned") or v.endswith(".npy")),
        network=True,
        path=True,
    )
    embeddings: str = field(
        "random:64",
        "of 'metric', scaled to unit length: 'random:WIDTH', a .npy file of (vocabulary, width), or a RUN's folder",
        Accepted(
            "random:WIDTH with WIDTH > 0, a .npy file or the folder of a run",
            lambda v: v and (not v.startswith("random:") or re.fullmatch(r"random:0*[1-9]\d{0,8}", v)),
        ),
        network=True,
        path=True,
    )
    distance_power: float = field(
        2.0,
        "of 'metric', whose distance is |e - e'|**(2 * power): 2 as in FUDOKI, 1 as in URSA",
        Accepted("a number above 0, at most 63 (4**63 is the last that float32 holds)", lambda v: 0 < v <= 63),
        network=True,
    )
    beta: str = field(
        "power",
        "inverse temperature of 'metric': 'power' is c (kappa / (1 - kappa))**a",
        one_of("power", "constant_speed"),
        network=True,
    )
    beta_c: float = field(3.0, "c of the beta 'power'", ABOVE_ZERO, network=True)
    beta_a: float = field(0.9, "a of the beta 'power'", ABOVE_ZERO, network=True)
    source_distribution: str = field(
        "uniform",
        "law of x_0; 'unigram' is that of data.train",
        one_of("uniform", "mask", "unigram"),
        network=True,
        also=("source", "prior", "noise_type", "transition", "diffusion"),
    )
    loss_function: str = field(
        "generalized_kl", "training loss", one_from(objectives), also=("loss", "objective", "criterion")
    )
    scheduler_type: str = field(
        "polynomial",
        "kappa_t, the share of data at time t",
        one_from(schedulers),
        network=True,
        also=("scheduler", "schedule", "noise_schedule", "noise_scheduler", "kappa", "alpha"),
    )
    exponent: float = field(
        1.0,
        "of the schedulers that have one: kappa = t**exponent for 'polynomial', 1 - (1 - t)**exponent for "
        "'one_minus_power'",
        ABOVE_ZERO,
        network=True,
        also=("power", "n", "degree"),
    )
    time_epsilon: float = field(
        1e-3, "training times are drawn from [0, 1 - time_epsilon]", FRACTION, also=("epsilon", "eps", "t_eps")
    )
    time_law: str = field(
        "uniform", "density of training times: 'uniform' is the published one", one_of("uniform", "squared")
    )
    time_sampling: str = field(
        "iid", "how times are drawn over the global batch: 'iid' is the published way",
        one_of("iid", "stratified", "antithetic"), also=("antithetic_sampling", "low_discrepancy"),
    )  # fmt: skip
    coupling: str = field(
        "independent", "'conditional' keeps parts of x_1, for prompts and infilling",
        one_of("independent", "conditional"),
    )  # fmt: skip
    sampling_steps: int = field(
        1024, "steps of the sampler", TIMES, unit="steps", continues=FREE, also=("nfe", "num_sampling_steps")
    )


@dataclasses.dataclass(frozen=True)
class Model(Group):
    """The transformer."""

    hidden_size: int = field(
        768,
        "width of the residual stream",
        POSITIVE,
        also=("d_model", "dim", "width", "hidden", "hidden_dim", "n_embd", "embed_dim", "emb_dim", "model_dim",
              "d_hidden", "embedding_size"), auto=True,
    )  # fmt: skip
    cond_dim: int = field(128, "width of the time embedding", POSITIVE, also=("time_dim", "t_dim", "time_embed_dim"))
    length: int = field(
        1024,
        "tokens per sequence",
        POSITIVE,
        unit="tokens",
        also=("seq_len", "seq_length", "sequence_length", "block_size", "context_length", "max_length", "max_len",
              "max_seq_len", "ctx", "n_ctx", "context"), auto=True,
    )  # fmt: skip
    n_blocks: int = field(
        12,
        "transformer blocks",
        POSITIVE,
        also=("n_layers", "n_layer", "num_layers", "num_layer", "layers", "depth", "num_blocks", "blocks",
              "num_hidden_layers"), auto=True,
    )  # fmt: skip
    n_heads: int = field(
        12,
        "attention heads",
        POSITIVE,
        network=True,
        also=("n_head", "num_heads", "heads", "num_attention_heads", "nhead"),
        auto=True,
    )
    dropout: float = field(
        0.1,
        "probability of dropping an output of attention or MLP",
        FRACTION,
        continues=FREE,
        also=("dropout_rate", "p_dropout", "drop", "dropout_p"),
        auto=True,
    )
    mlp_ratio: int = field(
        4, "MLP width / hidden_size", POSITIVE, also=("ffn_mult", "mlp_mult", "ffn_ratio", "expansion", "ff_mult")
    )
    attention: str = field(
        "auto",
        "implementation of attention: 'auto' is cudnn on GPUs, else xla",
        one_of("auto", "xla", "cudnn", "pallas"),
        continues=FREE,
        also=("attn", "attn_implementation", "flash", "flash_attention", "use_flash_attn"),
    )
    head: str = field(
        "auto",
        "implementation of the vocabulary head: 'auto' is blocks",
        one_of("auto", "dense", "blocks", "pallas"),
        continues=FREE,
        also=("lm_head", "vocab_head", "output_head"),
    )
    remat: str = field(
        "none",
        "products that the backward pass recomputes: 'none', 'dots' (those of attention), 'blocks' (all). 64 sequences "
        "a device take 28 GiB with 'none' and 18 with 'dots'. What lies between two products is always recomputed",
        one_of("none", "blocks", "dots"),
        continues=FREE,
        also=("checkpointing", "gradient_checkpointing", "activation_checkpointing", "recompute", "grad_checkpoint"),
    )
    compute_dtype: str = field(
        "auto",
        "of the matrix products: 'auto' is bfloat16 on GPU and TPU, else float32",
        one_of("auto", "float32", "bfloat16", "float16"),
        continues=FREE,
        also=("dtype", "precision", "amp", "mixed_precision", "fp16", "bf16"),
    )
    residual_dtype: str = field(
        "float32", "of the residual stream", one_of("float32", "bfloat16"), continues=FREE, also=("param_dtype",)
    )
    parametrization: str = field(
        "posterior",
        "what the network emits",
        one_of("posterior", "leave_one_out"),
        network=True,
        also=("parameterization", "parametrisation", "prediction", "prediction_type"),
    )
    suppress_mask_logit: bool = field(
        True, "the mask token has probability 0 in all that samples or scores", SWITCH, network=True
    )
    time_scale: float = field(
        1.0, "factor on the time before its sinusoid; 1 = published", ABOVE_ZERO, network=True, also=("t_scale",)
    )
    time_input: str = field(
        "t",
        "what the network is told: 't' (published), 'kappa', or 'sigma' = -log kappa, as SEDD, UDLM and Duo are",
        one_of("t", "kappa", "sigma"),
        network=True,
    )
    largest_sigma: float = field(
        6.907755278982137,
        "of 'sigma', which is infinite at t = 0: the network is told no larger one. -log 0.001 is where SEDD, UDLM and "
        "Duo end their training",
        ABOVE_ZERO,
        network=True,
        since="0.2",
        also=("sigma_max", "max_sigma"),
    )
    time_conditioning: bool = field(
        True,
        "false: a network that is not told the time (mask source; or leave_one_out, where it would be told sigma)",
        SWITCH,
        network=True,
        also=("time_cond",),
    )
    qk_norm: bool = field(False, "normalise queries and keys", SWITCH, also=("qk_layernorm", "query_key_norm"))
    tie_embeddings: bool = field(
        False,
        "the head's matrix is the embedding's",
        SWITCH,
        also=("tie_word_embeddings", "weight_tying", "tied", "share_embeddings"),
    )


@dataclasses.dataclass(frozen=True)
class Eval(Group):
    """What is estimated of a run, and how exactly."""

    batch_size: int = field(
        512, "sequences per batch of the likelihood, over all devices", POSITIVE, unit="sequences", continues=FREE
    )
    sample_batch_size: int = field(
        16, "sequences per batch of generation, per device", POSITIVE, unit="sequences", continues=FREE
    )
    perplexity_batch_size: int = field(
        16, "sequences per batch of the judge, per device", POSITIVE, unit="sequences", continues=FREE
    )
    time_points: int = field(
        1024, "stratified times per sequence in the likelihood", TIMES, unit="times", continues=FREE,
        also=("num_times", "n_times", "mc_samples"),
    )  # fmt: skip
    num_samples: int = field(
        1024, "generated sequences that are judged", POSITIVE, unit="sequences", continues=FREE, also=("n_samples",)
    )
    judge: str = field(
        "gpt2-large",
        "a GPT-2's name on the hub, or a local folder; '' = no judge",
        ANYTHING,
        continues=FREE,
        path=True,
        also=("judge_model", "perplexity_model", "eval_model"),
    )
    corpora: tuple[str, ...] = field(
        ("wikitext103",),
        "corpora of the likelihood, each written as data.valid; 'data.valid' = the run's own validation text",
        NAMES,
        continues=FREE,
        path=True,
        also=("datasets", "corpus", "dataset"),
    )
    max_blocks: int = field(
        0,
        "blocks of each corpus that the loss and the likelihood are estimated on, spread evenly over it; 0 = all",
        COUNT,
        unit="blocks",
        continues=FREE,
        since="0.2",
        also=("max_batches", "eval_iters", "limit_val_batches", "max_eval_samples"),
        auto=True,
    )
    elbo: bool = field(True, "estimate the likelihood", SWITCH, continues=FREE, also=("likelihood", "nll", "bound"))
    perplexity: bool = field(True, "generate samples and judge them", SWITCH, continues=FREE, also=("ppl", "gen_ppl"))


@dataclasses.dataclass(frozen=True)
class Sampling(Group):
    """What is generated, and how."""

    num: int = field(
        16, "sequences to generate", POSITIVE, unit="sequences", continues=FREE, also=("num_samples", "n_samples", "n")
    )
    batch_size: int = field(16, "sequences per batch, per device", POSITIVE, unit="sequences", continues=FREE)
    steps: int = field(
        0,
        "steps of the sampler; 0 = flow.sampling_steps",
        TIMES_OR_0,
        unit="steps",
        continues=FREE,
        also=("nfe", "num_steps", "n_steps", "num_inference_steps"),
    )
    method: str = field(
        "exact",
        "step of the sampler, options after a colon: 'exact', 'euler', 'two_stage:div_free=1', ...",
        Accepted("a step that the path has", bool),
        continues=FREE,
        also=("sampler", "solver", "step", "predictor"),
    )
    temperature: float = field(
        1.0, "of the posterior that x_1 is drawn from", NON_NEGATIVE, continues=FREE, also=("temp", "t", "tau")
    )
    top_p: float = field(
        1.0, "nucleus of that posterior; 1 = all of it", PROPORTION, continues=FREE, also=("nucleus", "p", "topp")
    )
    scheduler: str = field(
        "",
        "another scheduler than in training; '' = the same",
        Accepted("nothing, or one of", lambda v: True, schedulers),
        continues=FREE,
        also=("schedule", "scheduler_type"),
    )
    seed: int = field(42, "of the samples", COUNT, continues=FREE)
    draft: int = field(
        1,
        "coupled drafts: inputs of the network at once, most of them guesses of later steps; the same samples sooner",
        POSITIVE,
        since="0.2",
        unit="inputs",
        continues=FREE,
        also=("drafts", "lookahead", "speculative"),
    )
    corrector: str = field(
        "",
        "after the steps, options after a colon: 'gibbs:sites=1,rounds=3', 'resample:rate=0.3', ...; '' = none",
        Accepted("a corrector that goes with the source and the path, or nothing", lambda v: True),
        since="0.2",
        continues=FREE,
        also=("correction", "corrector_steps", "refiner"),
    )
    guidance: str = field(
        "1",
        "of the posterior by a prompt, with the mask source: gamma, or 'linear:1,3' from kappa = 0 to 1; 1 = none",
        Accepted("a number of 0 or more, or linear:START,END", bool),
        since="0.2",
        continues=FREE,
        also=("gamma", "guidance_scale", "cfg", "cfg_scale", "guidance_weight"),
    )


@dataclasses.dataclass(frozen=True)
class Logging(Group):
    """What a run says while it runs."""

    log_freq: int = field(
        100, "steps between lines of metrics", POSITIVE, unit="steps", continues=FREE,
        also=("log_every", "log_interval", "logging_steps", "log_steps", "print_every"), auto=True,
    )  # fmt: skip
    enable_wandb: bool = field(False, "also log to Weights & Biases", SWITCH, continues=FREE, also=("wandb",))


@dataclasses.dataclass(frozen=True)
class Mesh(Group):
    """How devices share the work."""

    data: int = field(
        -1, "devices that split the batch; -1 = all that are left", AXIS, unit="devices", continues=FREE,
        also=("dp", "data_parallel", "ngpus", "devices", "num_devices", "n_gpus"),
    )  # fmt: skip
    fsdp: int = field(
        1, "devices that split the batch and the parameters", AXIS, unit="devices", continues=FREE, also=("zero",)
    )
    tensor: int = field(
        1, "devices that split heads, MLP width and vocabulary", AXIS, unit="devices", continues=FREE,
        also=("tp", "tensor_parallel", "model_parallel", "mp"),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Checkpoint(Group):
    """Which checkpoints stay, and what a run starts from."""

    keep_last: int = field(
        2,
        "newest checkpoints that are kept (2 or more while training); with 1 the last has none before it",
        POSITIVE,
        unit="checkpoints",
        continues=FREE,
        also=("max_to_keep", "save_total_limit", "keep", "num_checkpoints"),
    )
    keep_every: int = field(
        0, "checkpoints at multiples of this step are kept for good; 0 = none", COUNT, unit="steps", continues=FREE,
        also=("keep_period",),
    )  # fmt: skip
    keep_best: bool = field(
        False,
        "keep the checkpoint of the lowest evaluation loss; eval, sample and export use it unless --step names another",
        SWITCH,
        continues=FREE,
        since="0.2",
        also=("save_best", "load_best_model_at_end", "best", "save_best_only"),
    )
    restore_from: str = field(
        "",
        "RUN[:STEP], a folder or file of weights, or hf:NAME: start from those that fit by name and shape; '' = "
        "from scratch",
        ANYTHING,
        continues=FREE,
        path=True,
        also=("init_from", "resume_from", "resume", "pretrained", "load_from", "from_pretrained", "init_checkpoint"),
    )
    restore_changed: tuple[str, ...] = field(
        (),
        "fields that may differ from the run in restore_from though they change what the network's numbers mean, such "
        "as flow.source_distribution when it is fine-tuned to another source",
        Accepted(
            "names of fields, as flow.source_distribution,flow.exponent",
            lambda v: all(re.fullmatch(r"[a-z_]+\.[a-z_0-9]+", name) for name in v),
        ),
        continues=FREE,
        since="0.2",
    )


@dataclasses.dataclass(frozen=True)
class Config(Group):
    """A run's settings, frozen. `config.optim.lr`, `config["optim"]["lr"]` and `config["optim.lr"]` are one value."""

    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    training: Training = Training()
    optim: Optim = Optim()
    flow: Flow = Flow()
    model: Model = Model()
    eval: Eval = Eval()
    sampling: Sampling = Sampling()
    logging: Logging = Logging()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()

    def __getitem__(self, name: str) -> Any:
        group, _, rest = name.partition(".")
        value = super().__getitem__(group)
        return value[rest] if rest else value

    def flat(self) -> dict[str, Any]:
        """{"group.field": value} of every field."""
        return {name: self[name] for name in TABLE}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{group: {field: value}}, for files and reports."""
        return {name: dict(group) for name, group in self.items()}


GROUPS: dict[str, type[Group]] = {name: type(group) for name, group in Config().items()}
TABLE: dict[str, Field] = {name: f for group, cls in GROUPS.items() for name, f in stated(group, cls).items()}
# What a network's numbers mean, where its arrays do not tell: with another value every shape is right (257 and 258
# tokens are both padded to 384) and every figure wrong. Another schedule of the samples is `sampling.scheduler`.
NETWORK: tuple[str, ...] = tuple(name for name, f in TABLE.items() if f.network)
# No fine-tuning makes these right: with another tokenizer or number of heads the same rows and columns are others.
NEVER_CHANGED = ("tokenizer.name", "model.n_heads")


def defaults() -> ConfigDict:
    """The published recipe, for a config file to change: `config = defaults(); config.optim.lr = 1e-3`."""
    return ConfigDict(Config().to_dict())
