"""The published recipe, which a config file changes: every field with its unit is in docs/config.md."""

from ml_collections import ConfigDict

from dfm_jax.config import fields


def get_config() -> ConfigDict:
    """The uniform-source, generalized-KL experiment of 170 M parameters on FineWeb-EDU."""
<<<<<<< HEAD
    return fields.defaults()
=======
    config = ConfigDict()

    config.data = ConfigDict()
    config.data.train = "fineweb-edu"  # corpus to train on: a name, a path or glob of files, or NAME@PATH
    config.data.valid = "wikitext103"  # corpus to evaluate on, written in the same way
    config.data.num_workers = 8  # threads that tokenise; 0 = one per core
    config.data.cache_dir = "data"  # folder of the prepared token shards
    config.data.packing = "continuous"  # 'reference' reproduces the published WikiText blocks

    config.tokenizer = ConfigDict()
    config.tokenizer.name = "gpt2"  # 'gpt2' (50257 tokens), 'bytes' (256 and an end of text), 'ids:N' (no text)

    config.training = ConfigDict()
    config.training.batch_size = 512  # sequences per update, over all devices
    config.training.grad_accum = 1  # parts that each batch is computed in, one after the other
    # Blocks written out per turn of the loop over them; 0 = all. A loop copies what it keeps for the backward pass,
    # a quarter of a GPU's memory traffic, and compiles three times as fast.
    config.training.unroll = 0
    config.training.snapshot = 2000  # steps between checkpoints; 0 = only at the end
    config.training.eval_freq = 20000  # steps between evaluations of the loss; 0 = only at the end
    config.training.perplexity_freq = 20000  # steps between generations with a judge; 0 = never
    config.training.seed = 42  # of the initialisation, the data order and all noise
    config.training.max_bad_steps = 10  # updates in a row with a non-finite loss or gradient that end the run

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # an optimiser of dfm_jax/optim/optimizer.py
    config.optim.lr = 3e-4  # peak learning rate
    config.optim.beta1 = 0.9  # decay of the first moment
    config.optim.beta2 = 0.95  # decay of the second moment
    config.optim.eps = 1e-8  # added to the root of the second moment
    config.optim.weight_decay = 0.03  # decoupled, per unit of learning rate
    config.optim.decay = "all"  # parameters that decay: 'all' (published) or 'matrices'
    config.optim.warmup = 2500  # steps of linear warm-up
    config.optim.n_iters = 1_000_000  # steps of the run; the cosine ends here
    config.optim.eta_min_ratio = 0.1  # last learning rate / peak
    config.optim.grad_clip = 1.0  # largest global norm of the gradient; 0 = off
    config.optim.exponents_lr = 0.1  # learning rate of the exponents that 'genmd4' learns / that of the network
    config.optim.ema_decay = 0.0  # of the averaged parameters used by evaluation and sampling; 0 = off

    config.flow = ConfigDict()
    config.flow.path = "mixture"  # 'mixture' (published), 'three_term', 'kinetic_optimal', 'genmd4' or 'metric'
    config.flow.noise = 0.5  # share of uniform noise on the way of 'three_term': noise * kappa * (1 - kappa)
    # Of each token on 'genmd4': '' all 1, 'learned', or a .npy file of (vocabulary,) numbers > 0. A common factor is
    # only another clock; with numbers <= 1/2 the loss has no variance.
    config.flow.exponents = ""
    config.flow.embeddings = (
        "random:64"  # metric's, unit length: 'random:WIDTH', a .npy of (vocabulary, width), or a RUN
    )
    config.flow.distance_power = 2.0  # metric's distance is |e - e'|**(2 * power): 2 as in FUDOKI, 1 as in URSA
    config.flow.beta = "power"  # metric's inverse temperature: 'power' c (kappa / (1 - kappa))**a, 'constant_speed'
    config.flow.beta_c = 3.0  # c of 'power'
    config.flow.beta_a = 0.9  # a of 'power'
    config.flow.source_distribution = "uniform"  # law of x_0: 'uniform', 'mask', or 'unigram' of data.train
    config.flow.loss_function = "generalized_kl"  # an objective of dfm_jax/flow
    config.flow.scheduler_type = "polynomial"  # kappa_t, a scheduler of dfm_jax/flow
    config.flow.exponent = 1.0  # of the schedulers that have one: kappa = t**exponent for 'polynomial'
    config.flow.time_epsilon = 1e-3  # times are drawn from [0, 1 - time_epsilon]
    config.flow.time_law = "uniform"  # density of training times: 'uniform' (published) or 'squared'
    config.flow.time_sampling = "iid"  # over the global batch: 'iid' (published), 'stratified', 'antithetic'
    config.flow.coupling = "independent"  # 'conditional' keeps parts of x_1, for prompts and infilling
    config.flow.sampling_steps = 1024  # steps of the sampler

    config.model = ConfigDict()
    config.model.hidden_size = 768  # width of the residual stream
    config.model.cond_dim = 128  # width of the time embedding
    config.model.length = 1024  # tokens per sequence
    config.model.n_blocks = 12  # transformer blocks
    config.model.n_heads = 12  # attention heads
    config.model.dropout = 0.1  # probability of dropping an output of attention or MLP
    config.model.mlp_ratio = 4  # MLP width / hidden_size
    config.model.attention = "auto"  # 'auto' (cudnn on GPUs, else xla), 'xla', 'cudnn', 'pallas'
    config.model.head = "auto"  # vocabulary head: 'auto' (blocks), 'dense', 'blocks', 'pallas'
    # Products that the backward pass recomputes: 'none', 'dots' (those of attention), 'blocks' (all). 64 sequences a
    # device take 28 GiB with 'none' and 18 with 'dots'. What lies between two products is recomputed always.
    config.model.remat = "none"
    config.model.compute_dtype = "auto"  # of the matrix products: 'auto' (bfloat16 on GPU/TPU, else float32)
    config.model.residual_dtype = "float32"  # of the residual stream
    config.model.parametrization = "posterior"  # what the network emits: 'posterior' or 'leave_one_out'
    config.model.suppress_mask_logit = True  # the mask token has probability 0 in all that samples or scores
    config.model.time_scale = 1.0  # factor on the time before its sinusoid; 1 = published
    config.model.time_input = "t"  # what the network is told: 't' (published) or 'kappa'
    config.model.time_conditioning = True  # False: a network that is not told the time (mask source)
    config.model.qk_norm = False  # normalise queries and keys
    config.model.tie_embeddings = False  # the head's matrix is the embedding's

    config.eval = ConfigDict()
    config.eval.batch_size = 512  # sequences per batch of the likelihood, over all devices
    config.eval.sample_batch_size = 16  # sequences per batch of generation, per device
    config.eval.perplexity_batch_size = 16  # sequences per batch of the judge, per device
    config.eval.time_points = 1024  # stratified times per sequence in the likelihood
    config.eval.num_samples = 1024  # generated sequences that are judged
    config.eval.judge = "gpt2-large"  # a GPT-2's name on the hub, or a local folder; '' = no judge
    config.eval.corpora = ("wikitext103",)  # corpora of the likelihood, written as data.valid
    config.eval.elbo = True  # estimate the likelihood
    config.eval.perplexity = True  # generate samples and judge them

    config.sampling = ConfigDict()
    config.sampling.num = 16  # sequences to generate
    config.sampling.batch_size = 16  # sequences per batch, per device
    config.sampling.steps = 0  # steps of the sampler; 0 = flow.sampling_steps
    config.sampling.method = "exact"  # a step of flow.get_step: 'exact', 'euler', 'two_stage:div_free=1', ...
    config.sampling.temperature = 1.0  # of the posterior that x_1 is drawn from
    config.sampling.top_p = 1.0  # nucleus of that posterior; 1 = all of it
    config.sampling.scheduler = ""  # another scheduler than in training; '' = the same
    config.sampling.seed = 42  # of the samples

    config.logging = ConfigDict()
    config.logging.log_freq = 100  # steps between lines of metrics
    config.logging.enable_wandb = False  # also log to Weights & Biases

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1 = all that are left
    config.mesh.fsdp = 1  # devices that split the batch and the parameters
    config.mesh.tensor = 1  # devices that split heads, MLP width and vocabulary

    config.checkpoint = ConfigDict()
    config.checkpoint.keep_last = 2  # newest checkpoints kept (2 while training); with 1 the last has none before it
    config.checkpoint.keep_every = 0  # checkpoints at multiples of this step are kept for good; 0 = none
    config.checkpoint.restore_from = ""  # RUN[:STEP]: start from that run's weights; '' = from scratch
    # Fields whose values may differ from that run's though they change what the network's numbers mean, such as
    # 'flow.source_distribution' when it is fine-tuned to another source.
    config.checkpoint.restore_changed = ()

    return config
>>>>>>> training
