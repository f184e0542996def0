"""GPT-2 against the reference's judge figures and against `transformers`."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dfm_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from dfm_jax.evaluation.judge.gpt2 import GPT2, GPT2Config, find_gpt2, load_gpt2

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
TINY = FIXTURES / "tiny_gpt2"


def test_logits_match_the_fixture():
    judge = np.load(FIXTURES / "judge.npz")
    model = load_gpt2(TINY)
    samples = jnp.asarray(judge["samples"], jnp.int32)
    np.testing.assert_allclose(model.logits(samples), judge["logits"], atol=1e-5)
    nll = -model.next_token_log_probs(samples).mean(axis=1)
    np.testing.assert_allclose(nll, judge["nll"], atol=1e-5)


def test_bfloat16_stays_close():
    judge = np.load(FIXTURES / "judge.npz")
    model = load_gpt2(TINY, "bfloat16")
    assert model.wte.embedding[...].dtype == jnp.bfloat16
    nll = -model.next_token_log_probs(jnp.asarray(judge["samples"], jnp.int32)).mean(axis=1)
    assert nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, judge["nll"], atol=2e-2)


@pytest.mark.slow
def test_a_later_token_changes_nothing_before_it():
    config = GPT2Config(vocab_size=31, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    model = GPT2(config, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 8), 0, 31)
    before, after = model.logits(tokens), model.logits(tokens.at[0, 5].add(1))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:])


def test_files_of_the_hub_lack_the_prefix_and_may_be_sharded(tmp_path):
    tensors = read_safetensors(TINY / "model.safetensors")
    names = list(tensors)
    shutil.copy(TINY / "config.json", tmp_path)
    weight_map = {}
    for shard, part in enumerate((names[:9], names[9:])):
        file = f"model-{shard}.safetensors"
        write_safetensors(tmp_path / file, {name.removeprefix("transformer."): tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    judge = np.load(FIXTURES / "judge.npz")
    logits = load_gpt2(tmp_path).logits(jnp.asarray(judge["samples"], jnp.int32))
    np.testing.assert_allclose(logits, judge["logits"], atol=1e-5)


def test_what_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="hf download"):
        find_gpt2(str(tmp_path))
    given = json.loads((TINY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(given | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type = 'llama'"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(given | {"n_embd": 26}))
    shutil.copy(TINY / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="has shape"):
        load_gpt2(tmp_path)
    whole = (TINY / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        load_gpt2(tmp_path)
    assert find_gpt2(str(TINY)) == TINY


def test_safetensors_round_trip(tmp_path):
    tensors = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.asarray(3.0),
        "half": np.asarray(jnp.asarray([1.0, 2.5], jnp.bfloat16)),
        "empty": np.zeros((0, 3), np.int64),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, {"format": "pt"})
    read = read_safetensors(path)
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_safetensors(path)
    path.write_bytes(b"no header here")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_safetensors(path)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_transformers_agrees_on_random_weights(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=211, n_positions=40, n_embd=48, n_layer=3, n_head=4, initializer_range=0.2
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 211, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    ours = load_gpt2(tmp_path).logits(jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)
