"""What fields have to be together, and what float32 and int32 make of the options of a sampler."""

import pytest

from dfm_jax import config, flow
from dfm_jax.cli import command_line
from dfm_jax.experiment import conditions, problem
from dfm_jax.flow.paths.metric.path import MOST_TOKENS_FOR_BOUND
from dfm_jax.runtime.errors import UsageError


def settings(name: str = "quickstart", **changes) -> config.Config:
    found = command_line.parse(["main.py", f"--config=configs/{name}.py"]).config
    return config.replace(found, {field.replace("__", "."): value for field, value in changes.items()})


WRONG = {
    "flow.scheduler_type": ("poly", "polynomial"),
    "flow.loss_function": ("mse", "one of"),
    "optim.name": ("sgdd", "one of adamw, muon, lion, adafactor"),
    "optim.warmup": (9999, "at most optim.n_iters = 3000"),
    "model.n_heads": (3, "2 * model.n_heads = 6"),
    "training.grad_accum": (5, "a divisor of training.batch_size = 16"),
    "mesh.fsdp": (-1, "at most one -1"),
    "sampling.method": ("magic", "exact"),
    "model.time_conditioning": (False, "expected true"),
    "sampling.scheduler": ("cosine", "cosine_md4"),
    "eval.corpora": ((), "at least one corpus"),
}


@pytest.mark.parametrize("field, wrong, part", [(f, *v) for f, v in WRONG.items()], ids=WRONG)
def test_fields_that_do_not_go_together_give_one_line(field, wrong, part):
    with pytest.raises(UsageError) as caught:
        given = settings(flow__source_distribution="uniform")
        conditions.check(config.replace(given, {field: wrong}), "train")
    line = str(caught.value)
    assert line.startswith("config.") and "\n" not in line and part in line


@pytest.mark.parametrize("name", ["quickstart", "uniform_gkl", "uniform_ce", "mask_gkl", "mask_ce", "mask_md4",
                                  "three_term", "unigram_ko", "mask_genmd4", "metric_ko", "model_7b"])  # fmt: skip
def test_the_shipped_configs_are_right(name):
    conditions.check(settings(name), "train")


@pytest.mark.parametrize("name", flow.SCHEDULERS)
def test_every_scheduler_may_train_and_sample(name):
    found = settings(flow__scheduler_type=name)
    conditions.check(found, "train")
    assert problem.get_scheduler(found, 5) == flow.get_scheduler(name, vocab_size=5)
    # The exponent of training goes to the schedulers that have one, and does not stand in the way of the others.
    found = settings(flow__exponent=2.0, sampling__scheduler=name)
    conditions.check(found, "train")
    exponent = {"polynomial": 2.0, "one_minus_power": 2.0}.get(name, 1.0)
    expected = flow.get_scheduler(name, exponent=exponent, vocab_size=5)
    assert problem.get_sampling_scheduler(found, 5) == expected


def test_exponents_are_learned_from_a_bound_alone():
    """Under cross-entropy they would only make sure that what is hard to tell is revealed first."""
    conditions.check(settings("mask_genmd4", flow__loss_function="generalized_kl"))
    with pytest.raises(UsageError, match=r"loss_function = cross_entropy: expected a bound where flow\.exponents = l"):
        conditions.check(settings("mask_genmd4", flow__loss_function="cross_entropy"))


def test_the_bound_of_the_metric_path_has_one_limit():
    most = settings("metric_ko", eval__elbo=True, tokenizer__name=f"ids:{MOST_TOKENS_FOR_BOUND}")
    conditions.check(most)
    conditions.check(config.replace(most, {"tokenizer.name": "bytes"}))
    beyond = config.replace(most, {"tokenizer.name": f"ids:{MOST_TOKENS_FOR_BOUND + 1}"})
    with pytest.raises(UsageError, match=r"eval\.elbo = True: expected false on the metric path with 513 .* 512$"):
        conditions.check(beyond)
    conditions.check(config.replace(beyond, {"eval.elbo": False}))


def test_float16_evaluates_and_does_not_train():
    half = settings(model__compute_dtype="float16")
    for mode in conditions.TRAIN:
        with pytest.raises(UsageError, match=r"model\.compute_dtype = float16: expected bfloat16 or float32 for tr"):
            conditions.check(half, mode)
    for mode in ("eval", "sample", "export", "prepare", "import"):
        conditions.check(half, mode)


@pytest.mark.parametrize("name", ["polynomial", "one_minus_power"])
@pytest.mark.parametrize("law", ["uniform", "squared"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_an_exponent_that_leaves_nothing_of_the_path(name, law, epsilon):
    def check(exponent: float) -> None:
        conditions.check(
            settings(flow__scheduler_type=name, flow__exponent=exponent, flow__time_law=law, flow__time_epsilon=epsilon)
        )

    for exponent in (0.5, 0.9, 1.0, 2.0, 8.0):
        check(exponent)
    for exponent in (1e-3, 1e-30, 1e30):
        with pytest.raises(UsageError, match=r"^config\.flow\.exponent = .*: expected an exponent"):
            check(exponent)


METHODS = {
    "corrector:iterations=1.5": "an integer of 0 or more",
    "corrector:iterations=1e9": "an integer of 0 or more",
    "corrector:iterations=nan": "an integer of 0 or more",
    "corrector:iterations=-1": "iterations=-1",
    "corrector:iterations=1000000000": "at most",
    "corrector:iterations=999999999999999999999": "below 2**31",
    "corrector:strength=nan": "strength=nan",
    "corrector:strength=1e-320": "float32",
    "two_stage:div_free=inf": "float32",
    "two_stage:div_free=nan": "div_free=nan",
    "two_stage:div_free=1e39": "float32",
    "two_stage:div_free=1e-320": "float32",
    "div_free_euler:div_free=inf": "float32",
    "multiflow:eta=inf": "float32",
    "multiflow:eta=nan": "eta=nan",
    "remask:eta=nan": "eta=nan",
    "thinning:delta=1e-320": "float32",
    "thinning:delta=nan": "delta=nan",
}


@pytest.mark.parametrize("method", METHODS)
def test_options_of_a_step_are_refused_by_what_they_become(method):
    source = "mask" if method.startswith("remask") else "uniform"
    found = settings(flow__source_distribution=source, flow__path="mixture", sampling__method=method)
    with pytest.raises(UsageError) as caught:
        conditions.check(found)
    line = str(caught.value)
    assert line.startswith(f"config.sampling.method = {method}: ") and METHODS[method] in line and "\n" not in line


def test_as_many_repetitions_as_a_plan_holds():
    conditions.check(settings(sampling__method="corrector:iterations=3,strength=0.3"))
    conditions.check(settings(sampling__method="corrector:iterations=31", sampling__steps=2**18))
    with pytest.raises(UsageError, match="expected at most 31"):
        conditions.check(settings(sampling__method="corrector:iterations=32", sampling__steps=2**18))


def test_rates_whose_product_float32_does_not_hold():
    with pytest.raises(UsageError, match=r"optim\.exponents_lr = 1e\+20: .* not inf"):
        conditions.check(settings(optim__lr=1e20, optim__exponents_lr=1e20))
    with pytest.raises(UsageError, match=r"optim\.eta_min_ratio = 1e-30: .* not 0"):
        conditions.check(settings(optim__lr=1e-10, optim__eta_min_ratio=1e-30))
    conditions.check(settings(optim__eta_min_ratio=0.0))


LOOKING = {
    "sampling.corrector = magic": {"sampling__corrector": "magic"},
    "sampling.corrector = gibbs:rate=1.5": {"sampling__corrector": "gibbs:rate=1.5"},
    "sampling.corrector = resample": {"sampling__corrector": "resample", "sampling__method": "thinning"},
    "sampling.guidance = -1": {"sampling__guidance": "-1"},
    "sampling.guidance = much": {"sampling__guidance": "much"},
    "sampling.guidance = 2": {"sampling__guidance": "2", "flow__source_distribution": "uniform"},
    "sampling.method = unmask": {"sampling__method": "unmask", "flow__source_distribution": "uniform"},
    "sampling.method = unmask:bound=-1": {"sampling__method": "unmask:bound=-1"},
    "sampling.method = unmask:count=0": {"sampling__method": "unmask:count=0"},
    "sampling.method = 'unm\\nask'": {"sampling__method": "unm\nask"},
    "sampling.method = unmask:count=1,bound=1": {"sampling__method": "unmask:count=1,bound=1"},
}


@pytest.mark.parametrize("named", LOOKING)
def test_samplers_that_look_are_refused_in_one_line(named):
    changes = {"flow__source_distribution": "mask", "flow__loss_function": "cross_entropy", "flow__path": "mixture"}
    conditions.check(settings(**changes))
    with pytest.raises(UsageError) as error:
        conditions.check(settings(**(changes | LOOKING[named])))
    assert str(error.value).startswith(f"config.{named}: ") and "expected" in str(error.value)
    assert "\n" not in str(error.value)


def test_guidance_is_for_modes_that_have_a_prompt():
    given = settings(flow__source_distribution="mask", flow__loss_function="cross_entropy", sampling__guidance="2")
    conditions.check(given, "sample")
    for mode in ("train", "eval"):
        with pytest.raises(UsageError, match=r"^config\.sampling\.guidance = 2: expected 1 in the mode"):
            conditions.check(given, mode)
