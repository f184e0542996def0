"""`hf:`, a tokenizer.json of each kind trained here: its ids, its cuts, its files, and runs and shards that keep it."""

import json
import pathlib
import random
import shutil

import numpy as np
import pytest

from dfm_jax import config as configs
from dfm_jax.config import Config
from dfm_jax.data import get_tokenizer, marked, open_stream, prepare, vocabulary_size
from dfm_jax.data.tokenizers import hf_cuts, hf_files, split_long
from dfm_jax.evaluation.prompts import parse_prompt
from dfm_jax.run.network import check_same_network
from dfm_jax.runtime.errors import UsageError, WorldError

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

KINDS = ("wordpiece", "bytelevel", "unigram")
SPECIAL = {
    "wordpiece": {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")},
    "bytelevel": {"eos_token": "<|endoftext|>", "bos_token": {"content": "<|endoftext|>", "__type": "AddedToken"}},
    "unigram": {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"},
}
SIGNS = """
the Café naïve don't it's 'll Привет мир ЁЛКА これは 日本語の 文章です。 한국어 שלום مرحبا हिन्दी 🤖
👩\u200d👧 e\u0301 \ufeff ﷺ ﬁn
Å ß İ ٣٤ ½ Ⅷ 12 3.14 1234567 <|endoftext|> [SEP] [MASK] ▁ Ġ ##ing \u200b \x00 http://a.b/c?d=e def f(x): return x
-- ... “quoted” _a_ $5 a\u0338
"""
WORDS = SIGNS.split() + ["\x1c", "\xa0", "\u3000"]
SPACES = [" ", " ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\t\t ", "", "    "]


def mixed(size: int, seed: int = 0) -> str:
    """Scripts, signs and spaces of all kinds, in random order, and Python's own source text; `size` characters."""
    draw = random.Random(seed)
    source = pathlib.Path(json.__file__).with_name("decoder.py").read_text() + pathlib.Path(random.__file__).read_text()
    parts, length = [], 0
    while length < size:
        some = "".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(100))
        at = draw.randrange(len(source))
        parts += [some, source[at : at + len(some)]]
        length += 2 * len(some)
    return "".join(parts)[:size]


def train(kind: str, lines: list[str]):
    names = [t if isinstance(t, str) else t["content"] for t in SPECIAL[kind].values()]
    options = {"vocab_size": 1500, "special_tokens": list(dict.fromkeys(names)), "show_progress": False}
    if kind == "wordpiece":  # as BERT's
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        made.train_from_iterator(lines, trainers.WordPieceTrainer(**options))
        ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        made.enable_truncation(16)
        made.enable_padding(length=16)
    elif kind == "bytelevel":  # as GPT-2's
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        made.post_processor = processors.ByteLevel(trim_offsets=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(lines, trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    else:  # as T5's
        made = tokenizers.Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
        )
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        made.train_from_iterator(lines, trainers.UnigramTrainer(unk_token="<unk>", **options))
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, pathlib.Path]:
    """A folder of each kind, as transformers saves them."""
    lines = mixed(60_000, seed=1).splitlines(keepends=True)
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind)
        train(kind, lines).save(str(found[kind] / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **SPECIAL[kind]}
        (found[kind] / "tokenizer_config.json").write_text(json.dumps(config))
    return found


def library(folder: pathlib.Path):
    """The library alone, which takes the names of special tokens for text."""
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True
    return made


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_the_librarys_in_one_piece_and_in_many(files, kind):
    text = mixed(1_000_000)
    wanted = library(files[kind]).encode(text, add_special_tokens=False).ids
    ours = get_tokenizer(f"hf:{files[kind]}")
    (ids,) = ours.encode_batch([text])
    assert ids.tolist() == wanted
    pieces = split_long(text, ours.cut, 1000)
    assert len(pieces) > 300 and "".join(pieces) == text
    assert np.concatenate(ours.encode_batch(pieces)).tolist() == wanted
    assert ours.eos_id not in ids and ids.max() < ours.vocab_size == vocabulary_size(f"hf:{files[kind]}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_transformers(files, kind):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(files[kind])
    ours = get_tokenizer(f"hf:{files[kind]}")
    text = mixed(100_000, seed=2)
    options = {"add_special_tokens": False, "verbose": False}
    assert ours.encode_batch([text])[0].tolist() == theirs(text, split_special_tokens=True, **options)["input_ids"]
    parsed = theirs(text, **options)["input_ids"]
    assert ours.encode_special(text).tolist() == marked(ours, "parse").encode_batch([text])[0].tolist() == parsed
    pieces = split_long(text, marked(ours, "parse").cut, 1000)
    assert np.concatenate(marked(ours, "parse").encode_batch(pieces)).tolist() == parsed and len(pieces) > 10
    assert ours.vocab_size == len(theirs)
    ids = ours.encode_batch(["Hello, the café is naïve."])[0]
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_a_mark_is_what_the_library_makes_of_it_with_the_spaces_around_it(tmp_path):
    """A blank that a mark takes with it, and a sign that only the first word gets."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
    names = ["<unk>", "</s>", tokenizers.AddedToken("<mask>", lstrip=True, special=True)]
    lines = ["one two three"] * 9
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=60, special_tokens=names, show_progress=False))
    made.save(str(tmp_path / "tokenizer.json"))
    ours, text = get_tokenizer(f"hf:{tmp_path}"), "one two <mask></s>three <mask>one two" * 3
    wanted = made.encode(text, add_special_tokens=False).ids
    assert marked(ours, "parse").encode_batch([text])[0].tolist() == ours.encode_special(text).tolist() == wanted
    assert marked(ours, "parse").cut(text) == 0  # the words of a part would get the sign of the first


def test_bytelevel_gives_the_bytes_back_whatever_block_they_are_cut_into(files):
    tokenizer = get_tokenizer(f"hf:{files['bytelevel']}")
    text = mixed(5000, seed=3)
    ids = tokenizer.encode_batch([text])[0]
    assert b"".join(tokenizer.decode_bytes(ids[i : i + 7]) for i in range(0, len(ids), 7)) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids[:1], tokenizer.eos_id]).endswith("<|endoftext|>")
    assert tokenizer.decode_bytes([tokenizer.eos_id]) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_a_special_token(files, kind):
    tokenizer = get_tokenizer(f"hf:{files[kind]}")
    names = [token if isinstance(token, str) else token["content"] for token in SPECIAL[kind].values()]
    text = "".join(f"{name}{name} {name} a{name}\n" for name in names)
    ids = tokenizer.encode_batch([text])[0]
    assert not set(ids.tolist()) & {i for role, i in tokenizer.special.items() if role != "unk"}
    if kind != "wordpiece":
        assert names[0] in tokenizer.decode(ids) and tokenizer.special["eos"] in tokenizer.encode_special(text)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_from_their_files(files, kind, tmp_path):
    made, plain = library(files[kind]), tmp_path / kind
    tokenizer = get_tokenizer(f"hf:{files[kind]}")
    for role, token in SPECIAL[kind].items():
        name = token if isinstance(token, str) else token["content"]
        assert tokenizer.special[role.removesuffix("_token")] == made.token_to_id(name) == tokenizer.marks[name]
    ends = {"wordpiece": "[SEP]", "bytelevel": "<|endoftext|>", "unigram": "</s>"}
    assert tokenizer.eos_id == made.token_to_id(ends[kind])
    # A tokenizer.json alone does not say; its names do.
    plain.mkdir()
    shutil.copy(files[kind] / "tokenizer.json", plain)
    assert get_tokenizer(f"hf:{plain}").eos_id == tokenizer.eos_id
    assert get_tokenizer(f"hf:{plain}/tokenizer.json").name == get_tokenizer(f"hf:{plain}").name


def test_tokens_that_only_the_config_adds(files, tmp_path):
    shutil.copytree(files["bytelevel"], tmp_path / "a")
    size = vocabulary_size(f"hf:{tmp_path / 'a'}")
    before = get_tokenizer(f"hf:{tmp_path / 'a'}").name
    config = {**SPECIAL["bytelevel"], "pad_token": "[PAD]"}
    config["added_tokens_decoder"] = {str(size): {"content": "[PAD]", "special": True}}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = get_tokenizer(f"hf:{tmp_path / 'a'}")
    assert tokenizer.vocab_size == size + 1 and tokenizer.special["pad"] == size and tokenizer.name != before
    assert tokenizer.encode_special("a[PAD]").tolist()[-1] == size
    assert size not in tokenizer.encode_batch(["a[PAD]"])[0]
    assert tokenizer.decode([size]) == "[PAD]"


def test_dividers_that_are_not_known_make_no_cut():
    long = "a b " * 1000
    for divider in (None, {"type": "CharDelimiterSplit", "delimiter": "b"}, {"type": "Metaspace", "split": False}):
        assert hf_cuts.find_cuts({"pre_tokenizer": divider})(long) == 0
    known = {"type": "WhitespaceSplit"}
    assert hf_cuts.find_cuts({"pre_tokenizer": known})(long) > 0
    assert hf_cuts.find_cuts({"pre_tokenizer": known, "normalizer": {"type": "Prepend", "prepend": "▁"}})(long) == 0
    added = [{"content": "b a", "special": False}]
    assert hf_cuts.find_cuts({"pre_tokenizer": known, "added_tokens": added})(long) == 0


def test_what_is_wrong_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    def offline(*args, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    (tmp_path / "empty").mkdir()
    for name in ("broken", "other", "random"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "other" / "tokenizer.json").write_text('{"model": {}}')
    bpe = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}
    (tmp_path / "random" / "tokenizer.json").write_text(json.dumps({"model": bpe}))
    for name, words in {
        "someone/something": r"the hub cannot be asked \(ConnectionError\), and its cache here",
        "nothing": "the hub cannot be asked",
        f"{tmp_path}/empty": "expected a folder with tokenizer.json",
        f"{tmp_path}/broken": "expected JSON",
        f"{tmp_path}/other": "expected the file of a tokenizer",
        f"{tmp_path}/random": r"model\.dropout = 0\.1: expected none",
    }.items():
        with pytest.raises(WorldError, match=words) as caught:
            vocabulary_size(f"hf:{name}")
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"tokenizer.name = hf:{name}")


def test_prepared_shards_keep_the_hash_and_not_the_place(files, tmp_path):
    (tmp_path / "text.txt").write_text(mixed(20_000, seed=4).replace("\0", ""), encoding="utf-8")
    here = tmp_path / "here"
    shutil.copytree(files["wordpiece"], here)
    corpus, cache = str(tmp_path / "text.txt"), tmp_path / "cache"
    folder = prepare(corpus, "train", get_tokenizer(f"hf:{here}"), cache)
    here.rename(tmp_path / "there")
    there = get_tokenizer(f"hf:{tmp_path / 'there'}")
    assert prepare(corpus, "train", there, cache) == folder
    stream = open_stream(folder, there.name)
    assert stream.manifest.tokenizer == there.name and there.name.startswith("hf:")
    assert stream.read(0, stream.num_tokens)[-1] == there.eos_id
    # Another vocabulary, another corpus.
    content = json.loads((tmp_path / "there" / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (tmp_path / "there" / "tokenizer.json").write_text(json.dumps(content))
    other = get_tokenizer(f"hf:{tmp_path / 'there'}")
    assert other.name != there.name and prepare(corpus, "train", other, cache) != folder
    with pytest.raises(WorldError, match=r"made with tokenizer\.name"):
        open_stream(folder, other.name)


def test_a_run_keeps_its_tokenizer(files, tmp_path):
    origin, run = tmp_path / "origin", tmp_path / "run"
    shutil.copytree(files["unigram"], origin)
    run.mkdir()
    name = f"hf:{origin}"
    config = configs.replace(Config(), {"tokenizer.name": name})
    (run / "config.json").write_text(configs.to_json(config))
    assert configs.load_run(run).tokenizer.name == name
    identity = get_tokenizer(name).name
    hf_files.keep(name, run)
    shutil.rmtree(origin)
    run.rename(tmp_path / "moved")
    moved = configs.load_run(tmp_path / "moved")
    assert get_tokenizer(moved.tokenizer.name).name == identity
    # The checkpoint's config still names the place where the files were.
    check_same_network(config.to_dict(), moved, tmp_path / "moved")
    another = configs.replace(moved, {"tokenizer.name": f"hf:{files['bytelevel']}"})
    with pytest.raises(UsageError, match=r"config\.tokenizer\.name = hf:"):
        check_same_network(config.to_dict(), another, tmp_path / "moved")


def test_a_prompt_names_special_tokens_only_if_it_is_asked_to(files):
    tokenizer = get_tokenizer(f"hf:{files['wordpiece']}")
    mask = tokenizer.special["mask"]
    text = "the [MASK] mir <gap:2> [SEP]"
    plain, special = (parse_prompt(text, tokenizer, 64, special=wanted) for wanted in (False, True))
    assert mask not in plain.tokens and mask in special.tokens[special.fixed]
    assert special.tokens[special.fixed].tolist()[-1] == tokenizer.eos_id
    bytes_ = get_tokenizer("bytes")
    assert parse_prompt("a<|endoftext|>", bytes_, 8, special=True).tokens.tolist()[:3] == [97, 256, 0]
    assert bytes_.encode_special("<|endoftext|><|endoftext|>").tolist() == [256, 256]
    assert len(bytes_.encode_special("")) == 0


def test_text8_has_a_blank_and_26_letters():
    tokenizer = get_tokenizer("char:text8")
    assert (tokenizer.vocab_size, tokenizer.eos_id, vocabulary_size("char:text8")) == (27, -1, 27)
    text = " anarchism originated as a term"
    (ids,) = tokenizer.encode_batch([text])
    assert ids.tolist()[:3] == [0, 1, 14] and tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.cut(text) == len(text)
    for wrong in ("A", "a\n", "é", "1"):
        with pytest.raises(WorldError, match="expected text of a to z and blanks"):
            tokenizer.encode_batch([wrong])
    with pytest.raises(UsageError):
        get_tokenizer("char:text9")
    assert parse_prompt("of the <gap:3>", tokenizer, 12).fixed.sum() == 7
