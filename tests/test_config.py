"""The room where a field is stated: defaults, checks, saved configs, old names, hints, and the page of all fields."""

import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys

import pytest

from dfm_jax import config
from dfm_jax.config import hints, overrides, reference, retired
from dfm_jax.runtime.errors import UsageError, WorldError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_a_config_is_frozen_typed_and_a_mapping():
    found = config.freeze(config.defaults())
    assert found == config.Config() and hash(found) == hash(config.Config())
    assert found.optim.lr == found["optim.lr"] == found["optim"]["lr"] == 3e-4
    assert dict(**found.mesh) == {"data": -1, "fsdp": 1, "tensor": 1}
    assert found.to_dict() == config.defaults().to_dict() and isinstance(found.to_dict()["eval"]["corpora"], tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.optim.lr = 1.0  # pyright: ignore
    for name in ("optim.speed", "speed"):
        with pytest.raises(KeyError):
            found[name]
    changed = config.replace(found, {"optim.lr": 1, "data.train": "x"})
    assert (changed.optim.lr, changed.data.train, found.optim.lr) == (1.0, "x", 3e-4)
    assert isinstance(changed.optim.lr, float)


def test_every_default_is_accepted_and_every_field_is_stated():
    assert len(config.TABLE) > 80
    for field in config.TABLE.values():
        assert field.accepted.holds(field.default), field.name
        assert field.meaning and field.expected and field.continues.words and re.fullmatch(r"\d+\.\d+", field.since)
        assert field.kind in (str, bool, int, float, tuple), field.name


def test_reading_a_config_imports_no_other_room():
    code = (
        "import sys; from dfm_jax import config; config.freeze(config.defaults()); "
        "print(sorted(n for n in sys.modules if n.startswith(('jax', 'configs', 'dfm_jax.'))))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name.split(".")[1] for name in re.findall(r"dfm_jax\.[\w.]+|configs\w*\.?\w*|jax\w*", result.stdout)}
    assert found == {"config", "runtime"}, result.stdout


def test_the_page_of_all_fields_is_the_one_in_the_docs():
    """`python -m dfm_jax.config.reference > docs/config.md` after a change of a field."""
    assert (ROOT / "docs" / "config.md").read_text() == reference.page()


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("optim.lr", -1.0, "config.optim.lr = -1.0: expected a number above 0"),
        ("optim.lr", math.nan, "config.optim.lr = nan: expected a number above 0"),
        ("optim.lr", None, "config.optim.lr = None: expected a number"),
        ("optim.lr", True, "config.optim.lr = True: expected a number"),
        ("optim.lr", 10**400, "a number above 0"),
        ("optim.eps", 1e-320, "config.optim.eps = 1e-320: expected a number above 0; float32 makes it 0"),
        ("optim.eps", 1e-45, "float32 makes it 0"),
        ("optim.weight_decay", 1e-50, "float32 makes it 0"),
        ("optim.beta2", 1 - 1e-12, "expected a number in [0, 1); float32 makes it 1"),
        ("optim.ema_decay", 1 - 1e-10, "float32 makes it 1"),
        ("optim.grad_clip", 1e39, "float32 makes it inf"),
        ("model.time_scale", 1e39, "config.model.time_scale = 1e+39: expected a number above 0; float32 makes it inf"),
        ("model.dropout", 0.999999999999, "float32 makes it 1"),
        ("sampling.temperature", 1e-320, "float32 makes it 0"),
        ("sampling.top_p", 0, "config.sampling.top_p = 0.0: expected a number in (0, 1]"),
        ("flow.distance_power", 64.0, "at most 63"),
        ("flow.time_epsilon", 0.9999999999, "float32 makes it 1"),
        ("flow.beta_a", 1e-320, "float32 makes it 0"),
        ("training.batch_size", 0, "config.training.batch_size = 0: expected an integer above 0, below 2**31"),
        ("training.snapshot", 10**20, "below 2**31"),
        ("optim.n_iters", 3 * 10**9, "below 2**31"),
        ("flow.sampling_steps", 2**24 + 1, "at most 2**24"),
        ("sampling.steps", -1, "an integer of 0 or more"),
        ("model.n_heads", "4", "config.model.n_heads = 4: expected an integer"),
        ("model.n_heads", 4.0, "config.model.n_heads = 4.0: expected an integer"),
        ("model.qk_norm", 1, "config.model.qk_norm = 1: expected true or false"),
        ("eval.corpora", "a", "expected a list of texts"),
        ("eval.corpora", ("a", ""), "names or paths"),
        ("eval.corpora", (1,), "expected a list of texts"),
        ("data.train", "", "config.data.train = '': expected a name or a path"),
        ("data.train", "a\0b", "without a NUL character"),
        ("tokenizer.name", "words", "config.tokenizer.name = words: expected gpt2, bytes, hf:NAME"),
        ("tokenizer.name", "ids:0", "ids:N"),
        ("flow.embeddings", "random:0", "WIDTH > 0"),
        ("flow.source_distribution", "gaussian", "one of uniform, mask, unigram"),
    ],
)
def test_a_wrong_value_gives_one_line(field, value, line):
    with pytest.raises(UsageError) as caught:
        config.replace(config.Config(), {field: value})
    text = str(caught.value)
    assert text.startswith(f"config.{field} = ") and line in text and "\n" not in text and len(text) < 400


def test_the_smallest_and_largest_that_float32_holds_are_accepted():
    found = config.replace(config.Config(), {"optim.eps": 1.2e-38, "model.time_scale": 3e38, "optim.beta1": 0})
    assert found.optim.eps == 1.2e-38 and found.optim.beta1 == 0.0


HINTS = {
    "model.n_layers": "model.n_blocks",
    "model.num_layers": "model.n_blocks",
    "model.depth": "model.n_blocks",
    "model.nheads": "model.n_heads",
    "model.d_model": "model.hidden_size",
    "model.hiden_size": "model.hidden_size",
    "model.seq_len": "model.length",
    "model.batch_size": "training.batch_size",
    "train.batch_size": "training.batch_size",
    "optim.lrr": "optim.lr",
    "optimizer.lr": "optim.lr",
    "optim.learning-rate": "optim.lr",
    "optim.n_layers": "model.n_blocks",
    "optim.beta": "optim.beta1",
    "optim.max_steps": "optim.n_iters",
    "training.n_iters": "optim.n_iters",
    "training.lr": "optim.lr",
    "training.gradient_accumulation_steps": "training.grad_accum",
    "flow.loss": "flow.loss_function",
    "flow.scheduler": "flow.scheduler_type",
    "sampling.nfe": "sampling.steps",
    "checkpoint.resume_from": "checkpoint.restore_from",
    "lr": "optim.lr",
    "learning_rte": "optim.lr",
    "optim.speed": None,
    "model.zzz": None,
    "foo.bar": None,
}


@pytest.mark.parametrize("name", HINTS)
def test_which_field_was_meant(name):
    assert hints.meant(name) == HINTS[name]


def test_no_field_is_also_called_what_another_field_of_its_group_is():
    for field in config.TABLE.values():
        group = field.name.partition(".")[0]
        for other in config.TABLE.values():
            if other is not field and other.name.startswith(f"{group}."):
                assert not {other.name.partition(".")[2], *other.also} & set(field.also), (field.name, other.name)


def test_an_unknown_field_of_a_config_file_names_the_one_that_was_meant():
    changed = config.defaults()
    changed.model.n_layers = 3
    with pytest.raises(UsageError, match=r"^config\.model\.n_layers = 3: expected a field that exists .*n_blocks\?"):
        config.freeze(changed)
    changed = config.defaults()
    changed.modle = 3
    with pytest.raises(UsageError, match=r"^config\.modle = 3: expected config\.model\.FIELD=VALUE; "):
        config.freeze(changed)
    changed = config.defaults()
    changed.optim = None
    with pytest.raises(UsageError, match=r"^config\.optim = None: expected a group of fields"):
        config.freeze(changed)
    changed = config.defaults()
    del changed.optim.lr
    with pytest.raises(UsageError, match=r"^config\.optim\.lr = \(missing\): expected a config with every field"):
        config.freeze(changed)


def old_names(monkeypatch):
    changes = {
        "optim.rate": retired.Retired(to="optim.lr"),
        "optim.speed": retired.Retired("there is one speed"),
        "model.head=fast": retired.Retired(to="blocks"),
        "model.head=slow": retired.Retired("'dense' is as slow"),
    }
    monkeypatch.setattr(retired, "RETIRED", retired.RETIRED | changes)


def test_old_names_and_values_in_a_config_file_a_saved_run_and_a_command_line(monkeypatch):
    old_names(monkeypatch)
    values = {name: value for name, value in config.Config().flat().items() if name != "optim.lr"}
    found = config.build({**values, "optim.rate": 0.5, "model.head": "fast"})
    assert (found.optim.lr, found.model.head) == (0.5, "blocks")

    saved = config.Config().to_dict()
    saved["optim"]["rate"] = saved["optim"].pop("lr")
    saved["model"]["head"] = "fast"
    assert config.from_json(json.dumps(saved)) == config.replace(config.Config(), {"model.head": "blocks"})

    said = []
    words = [("optim.rate", "0.25"), ("model.head", "fast")]
    found = config.build(overrides.apply(config.Config().flat(), words, said.append))
    assert (found.optim.lr, found.model.head) == (0.25, "blocks")
    assert said == [
        "config.optim.rate is now config.optim.lr, which takes its value 0.25",
        "config.model.head = fast is now blocks",
    ]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("optim.speed", 1, "config.optim.speed = 1: gone; expected there is one speed"),
        ("model.head", "slow", "config.model.head = slow: gone; expected 'dense' is as slow"),
        ("compute.ngpus", 8, "config.compute.ngpus = 8: gone; expected devices are found by themselves"),
        ("optim.fused", True, "config.optim.fused = True: gone; expected XLA fuses the update"),
    ],
)
def test_what_is_gone_for_good_is_answered_everywhere(monkeypatch, name, value, line):
    old_names(monkeypatch)
    with pytest.raises(UsageError) as caught:
        config.build({**config.Config().flat(), name: value})
    assert str(caught.value).startswith(line)
    with pytest.raises(UsageError, match=f"^{re.escape(f'config.{name} = {value}: gone')}"):
        overrides.apply(config.Config().flat(), [(name, str(value))])
    saved = config.Config().to_dict()
    group, _, leaf = name.partition(".")
    saved.setdefault(group, {})[leaf] = value
    with pytest.raises(WorldError) as caught:
        config.from_json(json.dumps(saved), "runs/a/config.json")
    assert str(caught.value).startswith(f"runs/a/config.json: {line}")


def test_a_config_survives_json():
    settings = config.replace(config.Config(), {"eval.corpora": ("a", "b"), "optim.lr": 1e-3})
    assert config.from_json(config.to_json(settings)) == settings
    assert json.loads(config.to_json(settings))["optim"]["lr"] == 1e-3


def saved_with(**changes) -> str:
    saved = config.Config().to_dict()
    for name, value in changes.items():
        group, _, leaf = name.partition("__")
        saved.setdefault(group, {})[leaf] = value
    return json.dumps(saved)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "expected a config that a run saved"),
        ("[1]", "an object of groups of fields"),
        ('{"optim": 3}', "an object of groups of fields"),
        ("{}", "config.data.train = (missing): expected a name or a path"),
        ("[" * 100_000, "RecursionError"),
        ('{"a":' * 100_000, "RecursionError"),
        (saved_with(optim__lr=None), "config.optim.lr = None: expected a number"),
        (saved_with(model__n_heads="4"), "config.model.n_heads = 4: expected an integer"),
        (saved_with(model__qk_norm=1), "config.model.qk_norm = 1: expected true or false"),
        (saved_with(eval__corpora=[1]), "expected a list of texts"),
        (saved_with(optim__speed=1), "config.optim.speed = 1: expected one of the fields of optim: name, lr"),
        (saved_with(speed__lr=1), "config.speed.lr = 1: expected a field that exists (did you mean config.optim.lr?)"),
        (saved_with(optim__lr="x").replace('"x"', "[" * 300 + "]" * 300), "config.optim.lr = "),
        (saved_with(optim__lr="x").replace('"x"', "1e999"), "config.optim.lr = inf: expected"),
        (saved_with(optim__lr="x").replace('"x"', "NaN"), "config.optim.lr = nan: expected"),
    ],
)
def test_a_damaged_saved_config_gives_one_line(text, part):
    with pytest.raises(WorldError) as caught:
        config.from_json(text, "runs/a/config.json")
    line = str(caught.value)
    assert line.startswith("runs/a/config.json: ") and part in line and "\n" not in line and len(line) < 500


def newer_field(monkeypatch, version: str) -> None:
    field = dataclasses.replace(config.TABLE["training.unroll"], since=version)
    monkeypatch.setitem(config.TABLE, "training.unroll", field)


def test_a_saved_config_lacks_only_what_is_newer_than_its_run(monkeypatch):
    for name in config.TABLE:
        saved = config.Config().to_dict()
        group, _, leaf = name.partition(".")
        if config.TABLE[name].since == "0.1":
            del saved[group][leaf]
            with pytest.raises(WorldError, match=rf"config\.{name} = \(missing\): expected "):
                config.from_json(json.dumps(saved))
    saved = config.Config().to_dict()
    del saved["mesh"]
    with pytest.raises(WorldError, match=r"config\.mesh\.data = \(missing\)"):
        config.from_json(json.dumps(saved))

    newer_field(monkeypatch, "0.10")
    saved = config.Config().to_dict()
    del saved["training"]["unroll"]
    assert config.from_json(json.dumps(saved)) == config.Config()
    # A run that has a field of 0.10 was made by it, and had all of them.
    monkeypatch.setitem(config.TABLE, "mesh.fsdp", dataclasses.replace(config.TABLE["mesh.fsdp"], since="0.10"))
    with pytest.raises(WorldError, match=r"config\.training\.unroll = \(missing\)"):
        config.from_json(json.dumps(saved))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def get_config(): return 3\n", "returns a int; expected a ConfigDict"),
        ("def get_config(): return 1 / 0\n", "raised ZeroDivisionError"),
        ("x = 1\n", "raised AttributeError"),
        ("(", "raised SyntaxError"),
    ],
)
def test_a_config_file_that_does_not_run_gives_one_line(tmp_path, text, part):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UsageError) as caught:
        config.load_file(str(tmp_path / "mine.py"))
    line = str(caught.value)
    assert line.startswith(f"config = {tmp_path}/mine.py: ") and part in line and "\n" not in line


def test_the_bundled_configs_are_found_by_their_folder(tmp_path, monkeypatch):
    assert config.bundled_configs() == ROOT / "configs" and "configs/quickstart.py" in config.known_configs()
    (tmp_path / "dfm_jax" / "configs").mkdir(parents=True)
    monkeypatch.setattr("dfm_jax.config.files.__file__", str(tmp_path / "dfm_jax" / "config" / "files.py"))
    assert config.bundled_configs() == tmp_path / "dfm_jax" / "configs"
