"""Published weights with the tokenizer of their own files: a mask inside, kept with the run and with the folder."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import dfm_jax
from dfm_jax.checkpoints.safetensors_file import read_safetensors

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "public_weights"
WORDS = [f"w{i}" for i in range(92)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "last"]  # 98


@pytest.fixture
def folder(tmp_path):
    """The fixture of MDLM as one of BERT's vocabulary: tokenizer.json with a mask of its own, at 4."""
    pytest.importorskip("dfm_jax.data.tokenizers.hf")
    tokenizers = pytest.importorskip("tokenizers")
    place = tmp_path / "mdlm"
    shutil.copytree(FIXTURES / "mdlm", place)
    model = tokenizers.models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(VOCABULARY[:5])
    tokenizer.save(str(place / "tokenizer.json"))
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    (place / "tokenizer_config.json").write_text(json.dumps({f"{role}_token": token for role, token in roles.items()}))
    return place


def test_the_mask_is_the_tokenizers_own_and_goes_back_to_its_place(folder, tmp_path):
    run = dfm_jax.import_weights(folder, tmp_path / "run", overrides={"flow.sampling_steps": 4})
    assert run.config.tokenizer.name == f"hf:{tmp_path / 'run' / 'tokenizer'}:without=4"
    assert run.config.data.packing == "wrapped"
    assert run.tokenizer.vocab_size == 97 and run.problem.source.mask_id == 97
    ids = run.tokenizer.encode_batch(["w0 w1 last"])[0].tolist()
    assert ids == [4, 5, 96] and run.tokenizer.eos_id == 3
    table = np.asarray(run.model.embedding.table[...])
    theirs = read_safetensors(folder / "model.safetensors")
    np.testing.assert_array_equal(table[97], theirs["backbone.vocab_embed.embedding"][4])
    shutil.rmtree(folder)  # the run has its own copy
    again = dfm_jax.load(tmp_path / "run")
    assert again.tokenizer.encode_batch(["w0 last"])[0].tolist() == [4, 96]
    out = dfm_jax.export(again, tmp_path / "out", format="mdlm")
    back = read_safetensors(out / "model.safetensors")
    for name, value in theirs.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    assert (out / "tokenizer.json").is_file()


def test_a_folder_for_the_hub_takes_the_tokenizer_with_it(folder, tmp_path):
    run = dfm_jax.import_weights(folder, tmp_path / "run", overrides={"flow.sampling_steps": 4})
    out = dfm_jax.export(run, tmp_path / "out", format="hub")
    expected = run.sample_tokens(2, seed=1)
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "run")
    loaded = dfm_jax.load(out)
    assert loaded.tokenizer.encode_batch(["w0 last"])[0].tolist() == [4, 96]
    np.testing.assert_array_equal(loaded.sample_tokens(2, seed=1), expected)


def test_a_mask_that_contradicts_the_tokenizer_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"mask_id = 7: expected 4, the mask of hf:"):
        dfm_jax.import_weights(folder, tmp_path / "run", mask_id=7)
