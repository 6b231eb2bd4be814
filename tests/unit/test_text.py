import json
import re

import pytest
import torch

from effllm.modules.data.texts import (
    Document,
    HubText,
    SyntheticText,
    WikipediaWheel,
    clean_article,
    deal,
)
from effllm.modules.data.windows import crop_windows, pack_windows
from effllm.modules.errors import DataError
from effllm.modules.evaluation.tasks import continuation_items, lastword_items


def encode(text):
    """A token per character, and where each begins."""
    return [ord(character) for character in text], list(range(len(text)))


def ids(text):
    return encode(text)[0]


def hub_text(**changes):
    return HubText(
        **{
            "name": "owner/set",
            "subset": None,
            "revision": "main",
            "splits": {"test": "test"},
            "column": "text",
            "max_documents": 10,
            "joiner": "\n\n",
            **changes,
        }
    )


def pack(texts, **options):
    return pack_windows(texts, encode, joiner="", **options)


def test_packed_windows_cut_the_text_in_order_and_drop_the_tail():
    windows, _ = pack(["abcdefg", "hijk"], num_sequences=None, sequence_length=3)
    assert windows.tolist() == [ids("abc"), ids("def"), ids("ghi")]
    spread, _ = pack(["abcdefghijk"], num_sequences=2, sequence_length=3, spread=True)
    assert spread.tolist() == [ids("abc"), ids("def")]


def test_spread_windows_reach_the_end_of_the_text():
    text = "".join(chr(200 + index) for index in range(100))
    windows, _ = pack([text], num_sequences=10, sequence_length=2, spread=True)
    assert len(windows) == 10 and windows[-1, 0] - 200 >= 90


def test_places_are_characters_and_windows_are_tokens():
    """Words as tokens: the sixth word begins far behind the sixth character."""

    def words(text):
        found = list(re.finditer(r"\S+", text))
        return [len(one.group()) for one in found], [one.start() for one in found]

    texts = ["one two three four five", "six seven", "eight nine ten eleven twelve"]
    windows, documents = pack_windows(
        texts, words, joiner=" ", num_sequences=None, sequence_length=3
    )
    assert windows.tolist() == [[3, 3, 5], [4, 4, 3], [5, 5, 4], [3, 6, 6]]
    assert documents == [0, 0, 2, 2]  # of "two", "five", "eight", "eleven"


def test_a_window_belongs_to_the_document_of_its_middle():
    texts = ["aaaa", "bb", "cccccc"]  # aaa a|b b|c ccc cc with bars between documents
    windows, documents = pack_windows(
        texts, encode, joiner="|", num_sequences=None, sequence_length=3
    )
    assert windows.tolist() == [ids(part) for part in ("aaa", "a|b", "b|c", "ccc")]
    assert documents == [0, 0, 1, 2]  # what stands between two belongs to the one before


def test_cropped_windows_come_from_long_documents_and_follow_the_seed():
    texts = ["short", "x" * 40, "y" * 41]
    crops = [
        crop_windows(
            texts,
            encode,
            num_sequences=20,
            sequence_length=30,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    (one, documents), (same, _), (other, _) = crops
    assert one.shape == (20, 30)
    assert torch.equal(one, same) and not torch.equal(one, other)
    letters = {1: ord("x"), 2: ord("y")}
    assert [letters[index] for index in documents] == one[:, 0].tolist() and len(
        set(documents)
    ) == 2


def test_too_little_text_is_refused_with_the_count():
    with pytest.raises(DataError, match="11 tokens: 3 windows of 3, but 4 are needed"):
        pack(["abcdefghijk"], num_sequences=4, sequence_length=3)
    with pytest.raises(DataError, match="no document .* more than 30 tokens"):
        generator = torch.Generator().manual_seed(0)
        crop_windows(["tiny"] * 3, encode, num_sequences=1, sequence_length=30, generator=generator)
    with pytest.raises(DataError, match="1000000000 windows are wanted of a text of 12 characters"):
        crop_windows(
            ["tiny"] * 3, encode, num_sequences=10**9, sequence_length=2, generator=generator
        )


def test_dealing_gives_each_document_to_one_split_by_share():
    documents = [Document(str(number), "z" * (100 + number % 7)) for number in range(200)]
    shares = {"train": 0.5, "calibration": 0.2, "heldout": 0.1, "test": 0.2}
    dealt = deal(documents, shares, seed=0)
    ids = [document.id for split in dealt.values() for document in split]
    assert sorted(ids) == sorted(document.id for document in documents)
    total = sum(len(document.text) for document in documents)
    for split, share in shares.items():
        found = sum(len(document.text) for document in dealt[split]) / total
        assert found == pytest.approx(share, abs=0.01)
    assert deal(list(reversed(documents)), shares, seed=0) == dealt


def test_articles_lose_their_markup():
    raw = "'''Anarchism''' is a [political] philosophy (, ) that advocates  self-government ."
    raw += "\n==See==\n* item"
    assert (
        clean_article(raw)
        == "Anarchism is a [political] philosophy that advocates self-government."
    )


def test_a_local_file_serves_the_splits_that_are_asked_for(tmp_path):
    plain = tmp_path / "wiki.test.raw"
    plain.write_text("first line\n \nsecond line\n")
    rows = hub_text(path=str(plain)).documents(["test"])["test"]
    assert [row.text for row in rows] == ["first line\n", "", "second line\n"]
    lines = tmp_path / "set.jsonl"
    lines.write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(10)))
    both = hub_text(path=str(lines)).documents(["calibration", "heldout"])
    assert {len(both["calibration"]), len(both["heldout"])} == {5}
    assert hub_text(path=str(lines)).identity()["revision"] == "local"


def test_rows_between_two_headings_are_one_document(tmp_path):
    """The joined text, that perplexity is measured on, is that of the rows."""
    rows = ["", " = One = ", "", "text", " = = Part = = ", "more", " = Two = ", "end"]
    plain = tmp_path / "wiki.test.raw"
    plain.write_text("\n".join(rows))
    by_row, by_article = (
        hub_text(path=str(plain), joiner="\n\n", heading=heading).documents(["test"])["test"]
        for heading in (None, "^ = [^=]+ = $")
    )
    assert [len(by_row), len(by_article)] == [8, 3]
    assert [one.text.split("\n")[0] for one in by_article] == ["", " = One = ", " = Two = "]
    assert " = = Part = = " in by_article[1].text and "more" in by_article[1].text
    one, other = ("\n\n".join(d.text for d in documents) for documents in (by_row, by_article))
    assert one == other


def test_local_files_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        hub_text(path=str(tmp_path / "absent.txt")).check()
    broken = tmp_path / "set.jsonl"
    broken.write_text('{"text": "fine"}\n{"other": 1}\n')
    with pytest.raises(DataError, match=r"set\.jsonl, line 2"):
        hub_text(path=str(broken)).documents(["test"])


def test_an_unreachable_hub_gives_one_sentence_with_the_remedy():
    with pytest.raises(DataError, match="could not be fetched.*data.path=.*data=enwiki"):
        hub_text().documents(["test"])
    with pytest.raises(DataError, match="owner/set.*from the hub.*data.path=.*data=enwiki"):
        hub_text().check()  # before any work
    with pytest.raises(DataError, match="no train split"):
        hub_text().documents(["train"])


def test_a_missing_wheel_gives_the_command_to_install_it():
    source = WikipediaWheel(
        name="enwiki", filename="absent.bz2", sha256="", min_characters=1, shares={}, seed=0
    )
    with pytest.raises(DataError, match="pip install gensim"):
        source.check()


def test_synthetic_splits_differ_and_repeat():
    source = SyntheticText(documents_per_split=2, sentences=5)
    first = source.documents(["train", "test"])
    assert first == source.documents(["train", "test"])
    assert first["train"][0].text != first["test"][0].text


@pytest.fixture(scope="module")
def articles():
    return SyntheticText(documents_per_split=8, sentences=60).documents(["test"])["test"]


def test_lastword_targets_occur_in_the_passage(articles):
    items = lastword_items(articles, count=20, min_words=12, max_words=30, seed=0)
    for item in items:
        words = [word.strip(".").lower() for word in item["context"].split()]
        assert item["target"].strip().lower() in words
        assert 11 <= len(words) < 30
    assert items == lastword_items(articles, count=20, min_words=12, max_words=30, seed=0)


def test_continuations_have_one_true_choice_at_every_place(articles):
    items = continuation_items(articles, count=40, context_words=8, choice_words=5, seed=0)
    texts = {document.id: document.text for document in articles}
    for item in items:
        truth = item["choices"][item["label"]]
        assert item["context"] + truth in texts[item["article"]]
        assert {len(choice.split()) for choice in item["choices"]} == {5}
    assert {item["label"] for item in items} == {0, 1, 2, 3}


def test_tasks_refuse_too_little_text(articles):
    with pytest.raises(DataError, match="task lastword: .* 100000 are wanted"):
        lastword_items(articles, count=100_000, min_words=12, max_words=30, seed=0)
