"""Paths: links, loops, hidden and unknown files, signs that mean something elsewhere, and `~`."""

import os

import pytest

from dfm_jax.data import get_tokenizer, open_stream, prepare, summary
from dfm_jax.runtime.errors import UsageError, WorldError

BYTES = get_tokenizer("bytes")


def documents(folder):
    stream = open_stream(folder)
    return BYTES.decode(stream.read(0, stream.num_tokens)).split("<|endoftext|>")[:-1]


def test_links_are_followed_once_and_what_is_left_out_is_named(tmp_path):
    here, there = tmp_path / "in", tmp_path / "elsewhere"
    (here / "sub" / "deep").mkdir(parents=True)
    (there / "more").mkdir(parents=True)
    (here / "a.txt").write_text("a")
    (here / "sub" / "deep" / "b.txt").write_text("b")
    (there / "c.txt").write_text("c")
    (there / "more" / "d.TXT").write_text("d")
    (there / "more" / "up").symlink_to(there)  # a loop
    (here / "linked").symlink_to(there)
    (here / "linked_again").symlink_to(there)
    (here / "sub" / "self").symlink_to(here)
    (here / "e.txt").symlink_to(there / "c.txt")  # under the name `e.txt`, which sorts first
    (here / "f.txt").symlink_to(there / "nowhere")
    (here / ".git").mkdir()
    (here / ".git" / "x.txt").write_text("x")
    (here / ".hidden.txt").write_text("x")
    (here / "photo.png").write_bytes(b"\x89PNG")
    (here / "table.csv").write_text("a,b")
    (here / "README").write_text("x")
    os.mkfifo(here / "pipe.txt")
    told = []
    made = prepare(str(here), "train", BYTES, tmp_path / "cache", note=told.append)
    assert documents(made) == ["a", "c", "d", "b"]
    left_out = open_stream(made).manifest.left_out
    assert [line.split(" (")[0] for line in left_out] == [
        "2 broken links or no regular files",
        "3 files of unknown kinds",
        "1 hidden files",
        "1 hidden folders",
        "1 other names of the same file",
        "3 other names of the same folder",
    ]
    assert "README, photo.png, table.csv" in left_out[1]
    assert [line for line in told if "left out" in line] == [
        f"data.train = {here}: left out: {line}" for line in left_out
    ]
    assert all(line in summary(made) for line in left_out)


def test_a_folder_of_unknown_files_alone_says_how_to_take_them(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(WorldError, match=r"no file there: expected files that end in \.txt"):
        prepare(str(tmp_path / "in"), "train", BYTES, tmp_path / "cache")
    for i in range(7):
        (tmp_path / "in" / f"{i}.md").write_text(f"# {i}")
    with pytest.raises(WorldError, match=r"no file there \(7 files of unknown kinds \(\.md 7\): 0\.md, .*\.\.\.\)"):
        prepare(str(tmp_path / "in"), "train", BYTES, tmp_path / "cache")
    assert len(documents(prepare(f"{tmp_path}/in/*.md", "train", BYTES, tmp_path / "cache"))) == 7


def test_a_glob_names_the_folders_that_it_does_not_go_into(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "in" / "sub" / "b.txt").write_text("b")
    made = prepare(f"{tmp_path}/in/*", "train", BYTES, tmp_path / "cache")
    assert documents(made) == ["a"]
    (line,) = open_stream(made).manifest.left_out
    assert line.startswith("1 folders (a pattern with ** goes into them)") and line.endswith(": sub")
    deep = open_stream(prepare(f"{tmp_path}/in/**", "train", BYTES, tmp_path / "cache"))
    assert deep.manifest.num_documents == 2 and not deep.manifest.left_out


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "in" / "secret").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("a")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(WorldError, match=r"secret cannot be listed \(Permission denied\)"):
        prepare(str(tmp_path / "in"), "train", BYTES, tmp_path / "cache")


@pytest.mark.parametrize(
    "name", ["a:b=c.txt", "x:column=y.txt", "[z].txt", "*.txt", "k@v.txt", "q?.txt", "lm1b@x.txt", "a b.txt", "{c}.txt"]
)
def test_signs_in_the_name_of_a_file(tmp_path, name):
    (tmp_path / name).write_text(f"this is {name}")
    (tmp_path / "z.txt").write_text("another")
    assert documents(prepare(str(tmp_path / name), "train", BYTES, tmp_path / "cache")) == [f"this is {name}"]
    spec = f"{tmp_path / name}:documents=lines"
    assert documents(prepare(spec, "train", BYTES, tmp_path / "cache")) == [f"this is {name}"]
    spec = f"lm1b@{tmp_path / name}"
    assert documents(prepare(spec, "train", BYTES, tmp_path / "cache")) == [f"this is {name}"]


def test_signs_in_the_name_of_a_folder(tmp_path):
    folder = tmp_path / "[2024]:lang=de"
    (folder / "x*y").mkdir(parents=True)
    (folder / "x*y" / "a.txt").write_text("a")
    (folder / "b.jsonl").write_text('{"meta:title": "b"}\n')
    for spec, wanted in (("x*y", "a"), ("x*y/*.txt", "a"), ("**/a.txt", "a"), ("b.jsonl:column=meta:title", "b")):
        assert documents(prepare(f"{folder}/{spec}", "train", BYTES, tmp_path / "cache")) == [wanted]


def test_home_is_meant_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    made = prepare("~/a.txt", "train", BYTES, "~/cache")
    assert made.parent == tmp_path / "cache"
    for spec in ("~/*.txt", "lm1b@~/a.txt", "~", f"~/cache/{made.name}"):
        assert documents(prepare(spec, "train", BYTES, "~/cache")) == ["a"]
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pydocs:column=x", "column=x means nothing for pydocs"),
        ("a.txt:documents=", "documents=: expected documents=VALUE once"),
        ("a.txt:documents=lines:documents=lines", "documents=lines: expected documents=VALUE once"),
        ("a.txt:document=lines", "document=lines: expected config=..., "),
        ("PREPARED:column=x", "column=x means nothing for a folder that is prepared already"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    spec = spec.replace("PREPARED", str(prepare("a.txt", "train", BYTES, "cache")))
    with pytest.raises(UsageError, match=message):
        prepare(spec, "train", BYTES, "cache")
