"""Records: prompts with responses, from files to rows."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dfm_jax.data import eval_batches, get_tokenizer, open_stream, prepare, summary, train_batches, verify
from dfm_jax.data.tokenizers.byte import ByteTokenizer
from dfm_jax.runtime.errors import UsageError, WorldError

BYTES = ByteTokenizer()
EOS = BYTES.eos_id
FIELD = "config.data.train"


def draw(count, seed=0):
    random = np.random.default_rng(seed)
    return [{"q": f"{i}: ", "a": "x" * int(random.integers(1, 30)), "n": i} for i in range(count)]


def write(folder, rows, name="chat.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def prepared(folder, spec, **options):
    return prepare(str(spec), "train", BYTES, folder / "cache", field=FIELD, **options)


def expected(row, length):
    """Tokens of a row, how many are given, and how many are counted."""
    prompt, response = row["q"].encode(), row["a"].encode()
    tokens = [*prompt, *response, EOS][:length]
    return tokens + [EOS] * (length - len(tokens)), len(prompt), len(tokens) - len(prompt)


@pytest.mark.parametrize("shard_bytes", [64, 1000, 1 << 20])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_is_prompt_response_end_of_text_and_padding(tmp_path, kind, shard_bytes):
    rows = draw(300)
    file = write(tmp_path, rows)
    if kind == "parquet":
        file = tmp_path / "chat.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=70)
    stream = open_stream(prepared(tmp_path, f"{file}:prompt=q:response=a", shard_bytes=shard_bytes), "bytes")
    assert stream.num_records == 300 and stream.manifest.num_documents == 300
    assert stream.num_tokens == sum(len(row["q"]) + len(row["a"]) + 1 for row in rows)
    blocks = stream.blocks(24)
    assert len(blocks) == stream.num_blocks(24) == 300
    for i, row in enumerate(rows):
        assert (blocks[i].tolist(), blocks.given(i), blocks.counted(i)) == expected(row, 24)
    long = sum(len(row["q"]) + len(row["a"]) + 1 > 24 for row in rows)
    assert (
        blocks.described() == f"{long} of 300 records are longer than model.length = 24 and cut at the end of the row"
    )
    assert len(list(verify(stream.folder))) == len(stream.manifest.shards) + 1
    assert "it begins:" in summary(stream.folder)


def test_long_records_can_be_left_out_and_are_counted(tmp_path):
    rows = draw(10_000)
    folder = prepared(tmp_path, f"{write(tmp_path, rows)}:prompt=q:response=a")
    blocks = open_stream(folder, long_records="skip").blocks(24)
    fit = [row for row in rows if len(row["q"]) + len(row["a"]) + 1 <= 24]
    assert len(blocks) == len(fit) and blocks.num_long == 10_000 - len(fit)
    for i in [0, 1, len(fit) // 2, len(fit) - 1, *range(3000, 3100)]:
        assert (blocks[i].tolist(), blocks.given(i), blocks.counted(i)) == expected(fit[i], 24)
    with pytest.raises(WorldError, match=r"not one of its 10,000 records fits into a row of model.length = 2"):
        open_stream(folder, long_records="skip").blocks(2)


def test_a_prompt_as_long_as_the_row_names_its_file_and_record(tmp_path):
    write(tmp_path, draw(7), "a.jsonl")
    write(tmp_path, [*draw(3), {"q": "y" * 16, "a": "z"}], "b.jsonl")
    folder = prepared(tmp_path, f"{tmp_path}/*.jsonl:prompt=q:response=a")
    with pytest.raises(
        WorldError, match=r"b.jsonl: record 4: its prompt has 16 tokens, and a row has model.length = 16"
    ):
        open_stream(folder).blocks(16)
    assert len(open_stream(folder).blocks(17)) == 11
    assert len(open_stream(folder, long_records="skip").blocks(17)) < 11


def test_messages_fill_a_template(tmp_path):
    template = tmp_path / "chat.txt"
    template.write_text("<{role}> {content}\n")
    turns = [("user", "one?"), ("assistant", "1"), ("user", "two {x}?"), ("assistant", "2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    file = write(tmp_path, [{"messages": messages}, {"messages": messages[1:2]}])
    table = pyarrow.Table.from_pylist([{"messages": messages}, {"messages": messages[1:2]}])
    pyarrow.parquet.write_table(table, tmp_path / "chat.parquet")
    for name in (file, tmp_path / "chat.parquet"):
        blocks = open_stream(prepared(tmp_path, f"{name}:messages=messages:template={template}")).blocks(64)
        prompt = "<user> one?\n<assistant> 1\n<user> two {x}?\n<assistant> "
        assert BYTES.decode(blocks[0][: blocks.given(0)]) == prompt
        assert BYTES.decode(blocks[0][blocks.given(0) :][: blocks.counted(0)]) == "2<|endoftext|>"
        assert BYTES.decode(blocks[1][:14]) == "<assistant> 1<"[:13] + "<|endoftext|>"


def test_a_template_makes_the_prompt_of_columns(tmp_path):
    template = tmp_path / "qa.txt"
    template.write_text("{{Q}} {q}{n}\nA: \n")
    spec = f"{write(tmp_path, [{'q': 'two', 'n': '2', 'a': 'four'}])}:template={template}:response=a"
    blocks = open_stream(prepared(tmp_path, spec)).blocks(32)
    assert BYTES.decode(blocks[0][: blocks.given(0)]) == "{Q} two2\nA: "
    # Another template is another corpus.
    template.write_text("{q}{n}=")
    assert open_stream(prepared(tmp_path, spec)).blocks(32).given(0) == 5


def test_gpt2_gives_the_space_between_prompt_and_response_to_the_response(tmp_path, gpt2):
    file = write(tmp_path, [{"q": "The sky is ", "a": "blue"}])
    blocks = open_stream(prepare(f"{file}:prompt=q:response=a", "train", gpt2, tmp_path / "cache")).blocks(8)
    prompt, response = gpt2.encode_batch(["The sky is", " blue"])
    assert blocks[0].tolist() == [*prompt, *response, *[gpt2.eos_id] * (8 - len(prompt) - len(response))]


@pytest.mark.parametrize(
    ("options", "row", "error"),
    [
        (":prompt=q:response=no", {"q": "a", "a": "b"}, ":1: no field no: expected it among q, a"),
        (":prompt=q:response=a", {"q": "a", "a": ""}, ":1: field a is empty: expected a response"),
        (":prompt=q:response=a", {"q": "a", "a": None}, r":1: field a is empty \(null\): expected a text"),
        (":prompt=q:response=a", {"q": 3, "a": "b"}, r":1: field q is no text \(int\): expected a text"),
        (":prompt=q:response=q", {}, "response=q: expected another column than that of the prompt"),
        (":template=TEMPLATE:response=role", {}, "template .*: {role} is the response: expected columns of the prompt"),
        (":prompt=q", {}, "prompt=: expected prompt= and response=, template= and response=, or messages="),
        (":prompt=q:response=a:column=c", {}, "column=c means nothing for records"),
        (":messages=m:template=TEMPLATE", {"m": []}, ":1: field m is no list of messages"),
        (
            ":messages=m:template=TEMPLATE",
            {"m": [{"role": "user", "content": "x"}]},
            "of the role user: expected assis",
        ),
        (":messages=m:template=TEMPLATE", {"m": [{"role": "user"}]}, "field m, message 1 has no text content"),
        (":messages=m:template=SHORT", {}, "template .*short.txt: no {content} in it: expected {role} and {content}"),
        (":template=NAMELESS:response=a", {}, "template .*nameless.txt: no name in braces"),
        (":template=BROKEN:response=a", {}, "template .*broken.txt: "),
        (":template=/no/such:response=a", {}, "template /no/such cannot be read"),
    ],
)
def test_what_is_no_record_is_one_line_with_its_place(tmp_path, options, row, error):
    for name, text in (
        ("template", "{role}: {content}\n"),
        ("short", "{role}: \n"),
        ("nameless", "x"),
        ("broken", "{q} }"),
    ):
        (tmp_path / f"{name}.txt").write_text(text)
        options = options.replace(name.upper(), str(tmp_path / f"{name}.txt"))
    file = write(tmp_path, [row])
    with pytest.raises((UsageError, WorldError), match=error) as raised:
        prepared(tmp_path, f"{file}{options}")
    assert str(raised.value).startswith(f"{FIELD} = {file}") and "\n" not in str(raised.value)
    assert not list((tmp_path / "cache").glob("*/*.npy"))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"q": "1", "q": "2", "a": "3"}', ":1: field q is there 2 times: expected it once"),
        ('[1, 2]', ":1: not a JSON object: expected one object a line"),
        ('{"q": ', ":1: not JSON "),
        ("", "no records in it .0 rows are empty.: expected some records"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_names_field_file_and_line(tmp_path, line, error):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises((UsageError, WorldError), match=error) as raised:
        prepared(tmp_path, f"{tmp_path / 'a.jsonl'}:prompt=q:response=a")
    assert str(raised.value).startswith(f"{FIELD} = {tmp_path / 'a.jsonl'}") and "\n" not in str(raised.value)


def test_a_column_that_a_table_has_twice_is_named(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["1"])] * 3, names=["q", "q", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match=r"a\.parquet: field q is there 2 times: expected it once"):
        prepared(tmp_path, f"{tmp_path / 'a.parquet'}:prompt=q:response=a")
    (tmp_path / "b.jsonl").write_text('{"q": "1", "a": "2", "other": {"x": 1, "x": 2}, "z": [{"q": 1}]}')
    assert open_stream(prepared(tmp_path, f"{tmp_path / 'b.jsonl'}:prompt=q:response=a")).num_records == 1


def test_bad_records_are_left_out_and_named_where_that_is_asked(tmp_path):
    rows = [{"q": "a", "a": "b"}, {"q": "a", "a": ""}, {"q": "c", "a": "d"}]
    spec = f"{write(tmp_path, rows)}:prompt=q:response=a"
    stream = open_stream(prepared(tmp_path, spec, on_error="skip"))
    assert (stream.num_records, stream.manifest.bad) == (2, 1)
    assert "chat.jsonl:2: field a is empty" in stream.manifest.places[0]


def test_records_of_a_folder_written_by_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = draw(600)
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    blocks = open_stream(prepared(tmp_path, f"{tmp_path / 'saved'}:prompt=q:response=a")).blocks(24)
    for i in (0, 255, 256, 599):
        assert (blocks[i].tolist(), blocks.given(i), blocks.counted(i)) == expected(rows[i], 24)
    with pytest.raises(IndexError):
        blocks[-1]
    with pytest.raises(UsageError, match=r"saved: no field no: expected it among q, a, n"):
        prepared(tmp_path, f"{tmp_path / 'saved'}:prompt=q:response=no")
    datasets.Dataset.from_list([*rows[:300], {"q": "x", "a": "", "n": 0}]).save_to_disk(str(tmp_path / "bad"))
    with pytest.raises(UsageError, match=r"bad, row 301: field a is empty: expected a response"):
        prepared(tmp_path, f"{tmp_path / 'bad'}:prompt=q:response=a")


def test_records_of_a_dataset_of_the_hub(tmp_path):
    """A local folder that is laid out like one."""
    pytest.importorskip("datasets")
    from dfm_jax.data.readers import records
    from dfm_jax.data.sources import hub

    rows = draw(300)
    (tmp_path / "hub").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub" / "train.parquet")
    form = records.form({"prompt": "q", "response": "a"}, FIELD)
    source = hub.Source(str(tmp_path / "hub"), None, "train", None, "text", FIELD, form)
    found = [row for unit in source.units() for row in unit.rows()]
    assert [(row.text, row.response) for row in found] == [(row["q"], row["a"]) for row in rows]
    other = hub.Source(
        str(tmp_path / "hub"), None, "train", None, "text", FIELD, records.form({"prompt": "q", "response": "z"}, FIELD)
    )
    with pytest.raises(UsageError, match=r"no field z: expected it among q, a, n"):
        other.units()


def test_text_holds_no_records(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"prompt= means nothing for text files"):
        prepared(tmp_path, f"{tmp_path / 'a.txt'}:prompt=q:response=a")
    write(tmp_path, draw(2), "b.jsonl")
    with pytest.raises(UsageError, match=r"a.txt: text holds no records"):
        prepared(tmp_path, f"{tmp_path}/*:prompt=q:response=a")


def test_records_need_an_end_of_text(tmp_path):
    with pytest.raises(UsageError, match=r"tokenizer.name = ids:9: expected one with an end of text"):
        prepare(f"{write(tmp_path, draw(2))}:prompt=q:response=a", "train", get_tokenizer("ids:9"), tmp_path / "cache")


def test_a_path_with_colons_is_still_taken_as_it_stands(tmp_path):
    rows = [{"text": "plain"}]
    name = "a:prompt=q:response=a.jsonl"
    write(tmp_path, rows, name)
    stream = open_stream(prepared(tmp_path, tmp_path / name))
    assert stream.num_tokens == 6 and not hasattr(stream, "num_records")
    (tmp_path / "b:c.jsonl").write_text(json.dumps({"q": "a", "a": "b"}))
    assert open_stream(prepared(tmp_path, f"{tmp_path / 'b:c.jsonl'}:prompt=q:response=a")).num_records == 1


def test_the_same_file_as_text_and_as_records_are_two_corpora(tmp_path):
    file = write(tmp_path, [{"text": "plain", "q": "a", "a": "b"}])
    text = open_stream(prepared(tmp_path, file))
    records = open_stream(prepared(tmp_path, f"{file}:prompt=q:response=a"))
    assert text.fingerprint != records.fingerprint and text.folder != records.folder


def test_a_prepared_folder_of_records_is_given_by_its_path(tmp_path):
    folder = prepared(tmp_path, f"{write(tmp_path, draw(20))}:prompt=q:response=a")
    assert prepared(tmp_path, folder) == folder


def test_a_killed_preparation_of_records_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    file = write(tmp_path, draw(2000))
    whole = prepared(tmp_path, f"{file}:prompt=q:response=a", shard_bytes=500)
    from dfm_jax.data import shards

    closed, close = [], shards.ShardWriter.close

    def dying(self):
        if len(closed) == 20:
            raise KeyboardInterrupt
        closed.append(self)
        return close(self)

    monkeypatch.setattr(shards.ShardWriter, "close", dying)
    spec, cache = f"{file}:prompt=q:response=a", tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, "train", BYTES, cache, shard_bytes=500)
    monkeypatch.setattr(shards.ShardWriter, "close", close)
    again = prepare(spec, "train", BYTES, cache, shard_bytes=500)
    for path in whole.glob("*.npy"):
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert open_stream(again).fingerprint == open_stream(whole).fingerprint


def test_batches_of_records_are_the_same_on_any_number_of_processes(tmp_path):
    rows = draw(50)
    stream = open_stream(prepared(tmp_path, f"{write(tmp_path, rows)}:prompt=q:response=a"))
    whole = train_batches(stream, length=24, batch_size=8, seed=3)
    parts = [train_batches(stream, length=24, batch_size=8, seed=3, process_index=i, process_count=2) for i in range(2)]
    late = train_batches(stream, length=24, batch_size=8, seed=3, start_step=5)
    by_prompt = {tuple(expected(row, 24)[0]): expected(row, 24)[1] for row in rows}
    for step in range(10):
        batch, halves = next(whole), [next(part) for part in parts]
        for i, name in enumerate(batch._fields):
            if batch[i] is not None:
                np.testing.assert_array_equal(np.concatenate([half[i] for half in halves]), batch[i], name)
        if step >= 5:
            again = next(late)
            assert (again.tokens == batch.tokens).all() and (again.given == batch.given).all()
        for tokens, given in zip(batch.tokens.tolist(), batch.given, strict=True):
            assert given.tolist() == [i < by_prompt[tuple(tokens)] for i in range(24)]


def test_evaluation_counts_responses_without_prompt_and_padding(tmp_path):
    rows = draw(11)
    stream = open_stream(prepared(tmp_path, f"{write(tmp_path, rows)}:prompt=q:response=a"))
    seen = []
    for batch, weights in eval_batches(stream, length=24, batch_size=4):
        for tokens, given, counted, weight in zip(batch.tokens, batch.given, batch.counted, weights, strict=True):
            if weight:
                seen.append((tokens.tolist(), int(given.sum()), int(counted)))
    assert seen == [expected(row, 24) for row in rows]
