"""What a file's first bytes say: a format of its own, an encoding, text or no text."""

import codecs
import json
import re

HEAD = 1 << 16  # bytes that are looked at

# First bytes -> what the file is. Two bytes alone would match too much text; such formats have NULs and fall to them.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive (or .docx, .xlsx, .npz, .pt); unpack it first"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it first"),
    (b"\x1f\x9d", "compressed by `compress`; unpack it first"),
    (b"\x04\x22\x4d\x18", "compressed by lz4; unpack it first"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed by snappy; unpack it first"),
    (b"LZIP", "compressed by lzip; unpack it first"),
    (b"!<arch>\n", "an ar archive; unpack it first"),
    (b"%PDF-", "a PDF; extract its text first (pdftotext)"),
    (b"%!PS", "PostScript; extract its text first (ps2txt)"),
    (b"{\\rtf", "rich text (RTF); extract its text first"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file; extract its text first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"RIFF", "a RIFF file (sound, video or WebP)"),
    (b"OggS", "an Ogg file"),
    (b"fLaC", "a FLAC file"),
    (b"ID3", "an MP3 file"),
    (b"\x7fELF", "a program (ELF)"),
    (b"\xca\xfe\xba\xbe", "a program (Java or Mach-O)"),
    (b"\xcf\xfa\xed\xfe", "a program (Mach-O)"),
    (b"\x00asm", "a program (WebAssembly)"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x93NUMPY", "a .npy array (`ids:N` takes numbers as text)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"ARROW1", "an Arrow file; write it as Parquet, or give its save_to_disk folder"),
    (b"\xff\xff\xff\xff", "an Arrow stream; write it as Parquet, or give its save_to_disk folder"),
    (b"FEA1", "a Feather file; write it as Parquet"),
    (b"Obj\x01", "an Avro file; write it as Parquet"),
    (b"ORC", "an ORC file; write it as Parquet"),
    (b"GGUF", "a GGUF model"),
)
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|svg)", re.IGNORECASE)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Names that say what is not read, and the way to what is.
_NAMED = {
    (".csv", ".tsv"): 'a table: expected .jsonl or .parquet (python -c "import pandas; '
    "pandas.read_csv('FILE').to_parquet('FILE.parquet')\"), and :column=NAME",
    (".html", ".htm", ".xhtml", ".xml", ".svg"): "markup: expected its text, extracted",
    (".ipynb",): "a notebook: expected its text (jupyter nbconvert --to markdown FILE)",
    (".arrow", ".feather"): "an Arrow file: expected .parquet, or the folder written by save_to_disk",
}


def is_parquet(first: bytes) -> bool:
    return first.startswith(b"PAR1")


def foreign(first: bytes) -> str:
    """The format that is no text and that the first bytes are of; '' where they are of none."""
    for magic, what in _FOREIGN:
        # A text may well begin with four letters.
        if first.startswith(magic) and not (magic.isalnum() and _is_text(first)):
            return what
    if first[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return ""


def _is_text(first: bytes) -> bool:
    return b"\x00" not in first and is_utf8(first)


def encoding(first: bytes) -> str:
    """Of the mark at the beginning of a text; UTF-8 where there is none."""
    return next((name for mark, name in _BOMS if first.startswith(mark)), "utf-8")


def decoded(first: bytes, encoding: str) -> str:
    """The text of a file's first bytes, up to a character that their end may cut."""
    return codecs.getincrementaldecoder(encoding)(errors="replace").decode(first).removeprefix("\ufeff")


def not_text(first: bytes, encoding: str) -> str:
    """Why these bytes are no text; '' where they are text."""
    text = decoded(first, encoding)
    if "\x00" in text:
        hint = "" if not encoding.startswith("utf-8") else " (UTF-16 without its mark? iconv -f UTF-16LE -t UTF-8)"
        return f"it holds NULs, so it is no text{hint}"
    if mostly_invalid(first, text):
        return f"most of it is not {encoding.upper()}, so it is no text (another encoding? iconv -f ENCODING -t UTF-8)"
    return ""


def mostly_invalid(data: bytes, text: str) -> bool:
    """Whether so much of the text was replaced by U+FFFD that it was none: more than a third, of a few characters
    more than a half.
    """
    replaced = text.count("\ufffd")
    if not replaced:
        return False
    replaced -= data.count("\ufffd".encode())
    return replaced > len(text) / (3 if len(text) >= 64 else 2)


def is_utf8(data: bytes) -> bool:
    """Whether data is UTF-8 up to a character that its end may cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def kind_of_text(text: str, suffix: str) -> tuple[str, str]:
    """The kind of a file whose name says no kind, or '' and why it is not read."""
    for suffixes, what in _NAMED.items():
        if suffix in suffixes:
            return "", what
    if _MARKUP.match(text[:1000].encode()):
        return "", "markup: expected its text, extracted"
    if _is_json_lines(text):
        return "jsonl", ""
    if suffix == ".json" or re.match(r'\s*(\{\s*"[^"\n]*"\s*:|\[\s*\{)', text):
        return "", "one JSON document: expected JSON lines, one object a line (jq -c '.[]' FILE > FILE.jsonl)"
    return "text", ""


def _is_json_lines(text: str) -> bool:
    """Whether the first line that is not blank is a JSON object, or begins as one and is longer than what is here."""
    line, feed, _ = text.lstrip().partition("\n")
    if not line.startswith("{"):
        return False
    if not feed and len(text.encode()) > HEAD // 2:
        return re.match(r'\{\s*"[^"\n]*"\s*:', line) is not None
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
