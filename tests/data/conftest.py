"""What the tests of data share: GPT-2's tokenizer and the folder of real rows, where the machine has them."""

import os
import pathlib

import pytest

from dfm_jax.data import get_tokenizer

# datasets must not ask the hub, nor draw progress bars, whatever a test does.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture
def test_data():
    """DFM_TEST_DATA: a folder with fineweb/*.parquet, wikitext/wiki.valid.raw and tiktoken_cache."""
    folder = os.environ.get("DFM_TEST_DATA")
    if not folder:
        pytest.skip("real rows: set DFM_TEST_DATA")
    return pathlib.Path(folder)


@pytest.fixture
def gpt2(monkeypatch):
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        if "DFM_TEST_DATA" not in os.environ:
            pytest.skip("GPT-2's tables: set TIKTOKEN_CACHE_DIR or DFM_TEST_DATA")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", os.path.join(os.environ["DFM_TEST_DATA"], "tiktoken_cache"))
    return get_tokenizer("gpt2")


@pytest.fixture(autouse=True, scope="session")
def no_fsync():
    """Tests write hundreds of tiny shards; none of them survives a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
