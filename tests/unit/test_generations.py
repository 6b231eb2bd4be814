"""Repetition and token classes of decoded text."""

import pytest

from effllm.modules.evaluation.generations import longest_repeat, token_class


@pytest.mark.parametrize(
    ("text", "length"),
    [("", 0), ("abc", 0), ("aa", 1), ("abcabd", 2), ("aaaa", 3), ("xabcyabcz", 3)],
)
def test_the_longest_repeat_by_hand(text, length):
    assert longest_repeat([ord(one) for one in text]) == length


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" 12", "digits"),
        ("4th", "digits"),
        (" été", "words"),
        ("'s", "words"),
        (").", "punctuation"),
        ("\n", "space"),
        ("", "space"),
    ],
)
def test_token_classes(text, kind):
    assert token_class(text) == kind
