"""Real rows: the published token stream of WikiText validation, and FineWeb's parquet files."""

import hashlib

import numpy as np
import pyarrow.parquet
import pytest

from dfm_jax.data import open_stream, prepare, verify

STREAM = "714170306b18ff73c00d48240f2e733b48e98372d45c829f7ffab68e9449aee9"
BLOCKS = "1517516e18ca0fa2016816a5bd11c5c0faf7e01ad3ca2834f2fc4b95518e4a39"


def test_wikitext_validation_is_the_published_token_stream(test_data, gpt2, tmp_path):
    spec = f"wikitext103@{test_data / 'wikitext' / 'wiki.valid.raw'}"
    stream = open_stream(prepare(spec, "valid", gpt2, tmp_path, shard_bytes=1 << 17))
    assert (stream.num_tokens, stream.manifest.num_documents) == (239_912, 3760)
    assert len(list(verify(stream.folder))) == 4
    blocks = stream.blocks(1024)
    assert len(blocks) == 234
    assert hashlib.sha256(stream.read(0, stream.num_tokens).tobytes()).hexdigest() == STREAM
    assert hashlib.sha256(b"".join(block.tobytes() for block in blocks)).hexdigest() == BLOCKS

    published = open_stream(prepare(spec, "valid", gpt2, tmp_path, packing="reference")).blocks(1024)
    assert len(published) == 229
    assert len({b.tobytes() for b in published} & {b.tobytes() for b in blocks}) == 25


@pytest.mark.parametrize("name", ["fineweb_10rows", "fineweb_15rows_extra_cols", "fineweb_edu_2rows_flat"])
def test_fineweb(test_data, gpt2, tmp_path, name):
    path = test_data / "fineweb" / f"{name}.parquet"
    rows = pyarrow.parquet.read_table(path).column("text").to_pylist()
    stream = open_stream(prepare(f"fineweb-edu@{path}", "train", gpt2, tmp_path))
    expected = np.concatenate([[*ids, gpt2.eos_id] for ids in gpt2.encode_batch(rows)])
    np.testing.assert_array_equal(stream.read(0, stream.num_tokens), expected)
    assert stream.manifest.num_documents == len(rows)
    assert stream.manifest.num_bytes == sum(len(row.encode()) for row in rows)


def test_a_glob_of_fineweb_is_its_files_in_order(test_data, gpt2, tmp_path):
    whole = open_stream(prepare(f"fineweb-edu@{test_data / 'fineweb' / '*.parquet'}", "train", gpt2, tmp_path))
    assert whole.manifest.num_documents == 27
    text = gpt2.decode(whole.read(0, whole.num_tokens))
    rows = [
        row
        for path in sorted((test_data / "fineweb").glob("*.parquet"))
        for row in pyarrow.parquet.read_table(path).column("text").to_pylist()
    ]
    assert text == "".join(row + "<|endoftext|>" for row in rows)
