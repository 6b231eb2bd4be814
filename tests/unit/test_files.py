"""Local files: read as they are or refused in one line, whatever they hold and are called."""

import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from effllm.modules.data.files import LocalFile
from effllm.modules.data.texts import FileText, HubText
from effllm.modules.errors import ConfigError, DataError, EffLLMError

ROWS = ["first", "", "zwei ä\u2028\x0b\x85 still the second", "drei"]
LINES = "".join(json.dumps({"url": "u", "text": text}) + "\n" for text in ROWS)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(path, column="text", **settings):
    settings = {"format": None, "encoding": "utf-8", **settings}
    return list(LocalFile(path=str(path), label="data", **settings).texts(column))


def parquet(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json", "a.ndjson", "c4-train.json.gz"])
def test_json_lines_are_json_lines_whatever_the_file_is_called(tmp_path, name):
    content = gzip.compress(LINES.encode(), mtime=0) if name.endswith(".gz") else LINES
    assert texts(write(tmp_path / name, content)) == ROWS


@pytest.mark.parametrize("name", ["a.txt", "a.raw", "rows", "a.gz", "a.jsonl.txt"])
def test_what_looks_like_json_is_not_taken_for_text_without_a_word(tmp_path, name):
    path = write(
        tmp_path / name, gzip.compress(LINES.encode(), mtime=0) if ".gz" in name else LINES
    )
    with pytest.raises(DataError, match=r"looks like JSON; .*format=text\|json_lines"):
        texts(path)
    assert texts(path, format="json_lines") == ROWS
    assert texts(path, format="text") == LINES.splitlines()


def test_other_formats_give_the_same_rows(tmp_path):
    listed = write(tmp_path / "a.json", json.dumps([{"text": text} for text in ROWS], indent=1))
    table = parquet(tmp_path / "a.parquet", {"text": ROWS, "n": [1, 2, 3, 4]})
    with open(table, "rb") as stream:
        packed = write(tmp_path / "b.parquet.gz", gzip.compress(stream.read(), mtime=0))
    for path in (listed, table, packed):
        assert texts(path) == ROWS
    plain = write(tmp_path / "a.txt", "\n".join(ROWS))
    assert texts(plain) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_are_no_text(tmp_path, encoding, end):
    path = write(tmp_path / "a.txt", end.join(["eins", "zwei ä", ""]).encode(encoding))
    given = "utf-8" if encoding == "utf-8-sig" else encoding
    assert texts(path, encoding=given) == ["eins", "zwei ä"]
    rows = write(tmp_path / "a.jsonl", (f'{{"text": "ä"}}{end}{end}' * 2).encode(encoding))
    assert texts(rows, encoding=given) == ["ä", "ä"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "eins\nzwei ä\n".encode("latin-1"), "line 2: .*not utf-8; .*encoding="),
        ("a.txt", "eins\n".encode("utf-16"), "line 1: .*not utf-8"),
        ("a.txt", "eins\n".encode("utf-16-le"), "line 1: a NUL character.*utf-16"),
        ("a.txt", gzip.compress("é\n".encode("latin-1"), mtime=0), "line 1: .*not utf-8"),
        ("a.txt", gzip.compress(b"eins\n" * 9999, mtime=0)[:-9], "cannot be read .*whole"),
        ("a.txt", b"PK\x03\x04rest", "packed with zip; unpack"),
        ("a.txt.bz2", b"BZh91AY", "packed with bzip2"),
        ("a.csv", "text\neins\n", "looks like a table; .*format="),
        ("a.jsonl", "plain\n", r"line 1: expected a JSON object \(.*format=text"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "line 2: .*'text', found null; repair"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": 7}\n', "line 3: .*'text', found int"),
        ("a.jsonl", '{"text": ["a"]}\n', "line 1: .*found list"),
        ("a.jsonl", '["a"]\n', "line 1: expected a JSON object with 'text', found list"),
        ("a.jsonl", '{"id": 1, "body": "a"}\n', "line 1: .*'text', found 'id', 'body'; .*column="),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n', "line 2: half a surrogate pair"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: expected a JSON object"),
        ("a.jsonl", '{"text": ' + "1" * 9999 + "}", "line 1: expected a JSON object"),
        ("a.json", '[{"text": "a"}, {"text": null}]', "row 2: .*found null"),
        ("a.json", '[{"text": "\\uDC00"}]', "half a surrogate pair"),
        ("a.json", '{\n "text": "a"\n}\n', "line 1: expected a JSON object"),
        ("a.parquet", b"PAR1 no more", "cannot be read"),
        ("a.parquet", b"", "cannot be read"),
    ],
)
def test_odd_rows_are_refused_with_file_line_and_remedy(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        texts(path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", None]}, "row 2: .*found null"),
        ({"text": [1, 2]}, "row 1: .*found int"),
        ({"text": [b"a"]}, "row 1: .*found bytes"),
        ({"body": ["a"]}, "row 1: .*'text', found 'body'"),
    ],
)
def test_odd_tables_are_refused(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        texts(parquet(tmp_path / "a.parquet", columns))


def test_places_that_hold_no_file_are_named(tmp_path):
    for path, message in (
        (tmp_path / "absent.txt", "no such file"),
        (tmp_path, "a folder"),
        ("/dev/zero", "device"),
        ("a\0b", "no such file"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            texts(path)


def test_settings_that_nobody_knows_are_refused(tmp_path):
    path = write(tmp_path / "a.txt", "eins\n")
    for settings in (
        {"format": "jsonl"},
        {"format": ["text"]},
        {"encoding": "utf-9"},
        {"encoding": "hex"},
        {"encoding": 8},
    ):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            texts(path, **settings)
    for heading in ("(", 7):
        with pytest.raises(ConfigError, match="no regular expression"):
            FileText(path=path, heading=heading)
    for nothing in (None, 7, ["a"]):
        with pytest.raises(ConfigError, match="path: expected the name of a file"):
            FileText(path=nothing)
    for name in ("", "a\nb", "\ud800", 7):
        with pytest.raises(ConfigError, match="no name"):
            FileText(path=path, name=name)


def test_no_odd_file_gives_a_traceback_or_loses_a_row(tmp_path):
    """400 files of pieces that have been trouble somewhere, under all names and encodings."""
    pieces = [b"text", b"\n", b"\r\n", b"\r", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", "ä€".encode()]
    pieces += [b"\xe4", b'{"text": "a"}', b'{"text": null}', b'{"text": 3}', b'{"text": "\\ud83d"}']
    pieces += [b"[", b"]", b",", b"{", b"}", b'"', b"PAR1", b"\x1f\x8b", b"\x08", b"\xed\xa0\x80"]
    names = ["a.txt", "a.jsonl", "a.json", "a.parquet", "a.csv", "a"]
    draw = random.Random(0)
    read = 0
    for _ in range(400):
        content = b"".join(draw.choices(pieces, k=draw.randrange(8)))
        if draw.random() < 0.2:
            content = gzip.compress(content, mtime=0)[: draw.choice([None, -3])]
        path = write(tmp_path / draw.choice(names), content)
        form = draw.choice([None, None, "text", "json_lines", "json", "parquet"])
        encoding = draw.choice(["utf-8", "utf-8", "latin-1", "utf-16"])
        try:
            file = LocalFile(path=path, format=form, encoding=encoding, label="data")
            found = list(file.texts("text"))
        except EffLLMError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        kept = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
        plain = kept.decode(encoding).removeprefix("\ufeff")
        if file.kind == "text":
            assert "\n".join(found) == plain.replace("\r\n", "\n").replace("\r", "\n").removesuffix(
                "\n"
            )
        else:
            assert len(found) == plain.count('"text"')
    assert 40 < read < 360


def test_way_of_reading_enters_the_identity_and_the_name_of_json_files_does_not(tmp_path):
    lines, same = write(tmp_path / "a.jsonl", LINES), write(tmp_path / "a.json", LINES)
    identities = [
        FileText(path=path, name="mine", **settings).identity()
        for path, settings in (
            (lines, {}),
            (same, {}),
            (lines, {"format": "json_lines"}),
            (lines, {"format": "text"}),
            (lines, {"encoding": "latin-1"}),
        )
    ]
    assert identities[0] == identities[1] == identities[2]
    assert len({json.dumps(one) for one in identities}) == 3
    assert identities[0]["revision"] == "local"  # as it was when nothing else was read


def test_only_the_published_file_bears_the_name_of_the_set(tmp_path):
    published = write(tmp_path / "wiki.test.raw", " = Title = \n \n Text . \n")
    mine = write(tmp_path / "mine.txt", "Text .\n")
    common = {"name": "owner/set", "subset": None, "revision": "main", "splits": {"test": "test"}}
    common |= {"column": "text", "max_documents": 9, "joiner": "\n\n"}
    checksum = FileText(path=published).identity()["sha256"]
    names = {
        path: HubText(path=path, test_sha256=checksum, **common).identity()["name"]
        for path in (published, mine)
    }
    assert names == {published: "owner/set", mine: "mine.txt"}
    assert FileText(path=mine).identity()["name"] == "mine.txt"
    assert FileText(path=mine, name="mine").identity()["name"] == "mine"
    with pytest.raises(DataError, match="is the test text of owner/set .* calibration"):
        HubText(path=published, test_sha256=checksum, **common).documents(["calibration"])


def test_a_plain_text_stays_as_it_is_and_has_its_documents(tmp_path):
    content = "= One =\n\nText.\n= Two =\nMore.\n"
    source = FileText(path=write(tmp_path / "a.txt", content), heading="= ")
    documents = source.documents(["test"])["test"]
    assert len(documents) == 2
    assert source.joiner.join(one.text for one in documents) + "\n" == content


def test_too_few_rows_for_the_splits_and_files_without_text_are_refused(tmp_path):
    one = FileText(path=write(tmp_path / "one.txt", "a single line\n"))
    with pytest.raises(DataError, match=r"one\.txt: 1 documents cannot be dealt to .* heldout"):
        one.documents(["calibration", "heldout"])
    for content in ("", "\n \n"):
        empty = FileText(path=write(tmp_path / "empty.txt", content))
        for look in (empty.identity, empty.check, lambda source=empty: source.documents(["test"])):
            with pytest.raises(DataError, match=r"empty\.txt: holds no text"):
                look()


def test_a_late_odd_row_is_found_before_any_work(tmp_path):
    late = FileText(path=write(tmp_path / "a.jsonl", '{"text": "a"}\n' * 2000 + "null\n"))
    late.identity()  # a cheap look
    with pytest.raises(DataError, match="line 2001: expected a JSON object"):
        late.check()
