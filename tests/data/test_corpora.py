"""What a spec means, which part of it is wrong, and the hub's path served from a local folder."""

import dataclasses

import datasets
import pytest

from dfm_jax.data import corpora, get_tokenizer, open_stream, prepare
from dfm_jax.data.corpora import resolve
from dfm_jax.data.identity import Memory
from dfm_jax.data.sources.wikitext import detokenize
from dfm_jax.runtime.errors import UsageError, WorldError

BYTES = get_tokenizer("bytes")


def texts(spec, split="train"):
    return [
        row.text if row else None
        for unit in resolve(spec, split, f"data.{split}").units(Memory())
        for row in unit.rows(0)
    ]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset with two configs, laid out as on the hub, under the name `tiny`."""
    folder = tmp_path / "hub"
    front = "---\nconfigs:\n"
    for config in ("first", "second"):
        front += f"- config_name: {config}\n  data_files:\n"
        for split, files in (("train", 3), ("validation", 1)):
            front += f"  - split: {split}\n    path: {config}/{split}-*.parquet\n"
            for i in range(files):
                rows = [f"{config} {split} {i} {j}" for j in range(4)]
                dataset = datasets.Dataset.from_dict({"id": list(range(4)), "text": rows, "other": rows})
                dataset.to_parquet(folder / config / f"{split}-{i:05d}-of-{files:05d}.parquet")
    (folder / "README.md").write_text(front + "---\n")
    monkeypatch.setitem(corpora.NAMED, "tiny", corpora.Rules(str(folder), "first"))
    return folder


def test_a_dataset_of_the_hub_is_streamed_by_file(hub):
    assert [unit.name for unit in resolve("tiny", "train", "").units(Memory())] == [f"file {i} of 3" for i in (1, 2, 3)]
    assert texts("tiny") == [f"first train {i} {j}" for i in range(3) for j in range(4)]
    assert texts("tiny", "valid") == [f"first validation 0 {j}" for j in range(4)]
    assert texts("tiny:config=second:split=validation:column=other")[0] == "second validation 0 0"


def test_a_unit_of_the_hub_goes_on_where_it_was_left(hub):
    unit = resolve("tiny", "train", "").units(Memory())[1]
    assert [row.text for row in unit.rows(3)] == ["first train 1 3"]
    assert unit.fraction() == 1.0
    assert list(unit.rows(4)) == []


def test_a_hub_that_breaks_off_keeps_what_is_prepared(hub, tmp_path):
    path = hub / "first" / "train-00001-of-00003.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(WorldError, match=r"data\.train = tiny: .*(stopped after 0 rows|cannot be loaded)") as caught:
        prepare("tiny", "train", BYTES, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert open_stream(prepare("tiny", "train", BYTES, tmp_path / "cache")).manifest.num_documents == 12


def test_a_corpus_of_the_hub_is_prepared_and_then_needs_no_hub(hub, tmp_path, monkeypatch):
    made = prepare("tiny", "train", BYTES, tmp_path / "cache", shard_bytes=64)
    stream = open_stream(made)
    assert stream.manifest.num_documents == 12
    assert BYTES.decode(stream.read(0, 16)) == "first train 0 0<|endoftext|>"
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert prepare("tiny", "train", BYTES, tmp_path / "cache", shard_bytes=64) == made


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("tiny:config=third", UsageError, "data.train = tiny:config=third: .*third"),
        ("tiny:split=test", UsageError, "data.train = tiny:split=test: .*test"),
        ("tiny:column=content", UsageError, "no column content in .*expected :column= one of id, text, other"),
        ("nobody/nothing", WorldError, "data.train = nobody/nothing: .*expected a machine with network, NAME@PATH"),
    ],
)
def test_what_the_hub_does_not_have(hub, spec, kind, message):
    with pytest.raises(kind, match=message) as caught:
        resolve(spec, "train", "data.train").units(Memory())
    assert "\n" not in str(caught.value)


def test_a_dataset_saved_to_disk(tmp_path):
    rows = {"text": ["a", "b", None, "c"], "n": [1, 2, 3, 4]}
    dataset = datasets.Dataset.from_dict(rows)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, validation=dataset.select([0])).save_to_disk(tmp_path / "both")
    assert texts(f"{tmp_path}/one") == ["a", "b", None, "c"]
    assert texts(f"{tmp_path}/both", "valid") == ["a"]
    assert texts(f"{tmp_path}/both:split=train", "valid") == ["a", "b", None, "c"]
    with pytest.raises(UsageError, match="no split test: expected :split= one of train, validation"):
        texts(f"{tmp_path}/both:split=test")
    with pytest.raises(UsageError, match=r"no column content in .*: expected :column= one of text, n"):
        texts(f"{tmp_path}/one:column=content")
    (unit,) = resolve(f"{tmp_path}/one", "train", "").units(Memory())
    assert [row.text for row in unit.rows(3)] == ["c"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "fineweb",
            "expected pydocs, fineweb-edu, wikitext103, .*NAME@PATH, an existing file, folder or glob, or OWNER/",
        ),
        ("wikitext@x", "expected pydocs"),
        ("fineweb-edu:dump=CC-MAIN-2024-10", "dump=CC-MAIN-2024-10: expected config=..., split=..., revision=..., "),
        (
            "fineweb-edu:documents=lines",
            "documents=lines means nothing for a dataset of the hub: expected the options config, ",
        ),
        ("HERE:config=x", "config=x means nothing for local files: expected the options column, documents"),
        ("HERE:documents=pages", "documents = pages: expected file, lines"),
        ("ptb", "the hub serves this corpus only as a script: expected ptb@PATH"),
    ],
)
def test_specs_without_meaning(tmp_path, spec, message):
    (tmp_path / "a.txt").write_text("x")
    spec = spec.replace("HERE", str(tmp_path))
    with pytest.raises(UsageError, match=f"data.train = {spec}: .*{message}"):
        resolve(spec, "train", "data.train")


def test_a_corpus_without_a_validation_split():
    with pytest.raises(
        UsageError, match=r"data\.valid = fineweb-edu: it has no split for this: expected fineweb-edu:split="
    ):
        resolve("fineweb-edu", "valid", "data.valid")


def test_a_named_corpus_keeps_its_rules_on_local_files(tmp_path):
    (tmp_path / "wiki.raw").write_text(" = A = \n \n a @-@ b \n")
    corpus = resolve(f"wikitext103@{tmp_path}/wiki.raw", "valid", "data.valid")
    assert texts(f"wikitext103@{tmp_path}/wiki.raw") == [" = A = \n", "", " a @-@ b \n"]
    made = prepare(f"wikitext103@{tmp_path}/wiki.raw", "valid", BYTES, tmp_path)
    stream = open_stream(made)
    assert BYTES.decode(stream.read(0, stream.num_tokens)) == " = A =\n<|endoftext|><|endoftext|> a-b\n<|endoftext|>"
    assert corpus.keep_empty
    assert stream.manifest.num_documents == 3


def test_named_corpora_of_the_published_run():
    edu, wikitext = corpora.NAMED["fineweb-edu"], corpora.NAMED["wikitext103"]
    assert (edu.hub, edu.config, edu.splits["train"]) == ("HuggingFaceFW/fineweb-edu", "CC-MAIN-2024-10", "train")
    assert (wikitext.config, wikitext.splits["valid"]) == ("wikitext-103-raw-v1", "validation")
    other = resolve("fineweb-edu:config=sample-10BT", "train", "")
    assert other.identity(Memory()) != resolve("fineweb-edu", "train", "").identity(Memory())


@pytest.mark.parametrize(
    # The form of records is a spec's own (test_records).
    "field",
    [f.name for f in dataclasses.fields(corpora.Rules) if f.name not in ("hub", "splits", "form")],
)
def test_rules_that_change_the_tokens_change_the_identity(tmp_path, monkeypatch, field):
    (tmp_path / "a.txt").write_text("x")
    spec = f"mine@{tmp_path}" if field != "config" else "mine"
    plain = corpora.Rules("owner/mine")
    other = {"detokenize": str.upper, "keep_empty": True, "keep_newline": True}.get(field, "lines")
    monkeypatch.setitem(corpora.NAMED, "mine", plain)
    before = resolve(spec, "train", "").identity(Memory())
    monkeypatch.setitem(corpora.NAMED, "mine", dataclasses.replace(plain, **{field: other}))
    assert resolve(spec, "train", "").identity(Memory()) != before


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (" the dogs ' tails \n", " the dogs' tails\n"),
        (" well @-@ known 1 @,@ 000 and 1 @.@ 5 \n", " well-known 1,000 and 1.5\n"),
        (" a : b ; c . d ! e ? f , g", " a: b; c. d! e? f, g"),
        (" x ( a b ) [ c ] { d } y", " x (a b) [c] {d} y"),
        (' say " yes " and " no " twice', ' say "yes" and "no" twice'),
        (" say ' yes ' twice", " say 'yes' twice"),
        (" = = Title = = \n", " == Title ==\n"),
        (" = = = = Deep = = = = \n", " ==== Deep ====\n"),
        (" 20 ° C", " 20°C"),
        (" N apples , Robert 's", " 1 apples, Robert's"),
        ("", ""),
    ],
)
def test_detokenizer_of_wikitext(row, text):
    assert detokenize(row) == text
