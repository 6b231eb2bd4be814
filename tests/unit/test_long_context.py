"""Long prompts: lengths, seeds, answers that stand in the text, and scores."""

import pytest
import torch
from scipy.stats import chisquare

from effllm.modules.data.long_prompts import TASKS, long_prompts
from effllm.modules.data.texts import SyntheticText
from effllm.modules.errors import DataError
from effllm.modules.kvcache.agreement import agreement, answer_score


@pytest.fixture(scope="module")
def documents():
    source = SyntheticText(documents_per_split=12, sentences=40, seed=0, joiner="\n\n")
    return source.documents(["test"])["test"]


def count(text):
    return len(text.split())


def prompts_of(documents, **options):
    settings = {"tasks": list(TASKS), "lengths": [200, 400], "per_task": 3, "seed": 0}
    return long_prompts(documents, count, **{**settings, **options})


def test_prompts_fill_their_length_and_depend_on_the_seed_alone(documents):
    prompts = prompts_of(documents)
    assert len(prompts) == len(TASKS) * 2 * 3 == len({one.id for one in prompts})
    for one in prompts:
        used = count(one.context + one.question + "".join(one.answers))
        assert one.length - 40 <= used <= one.length
    assert prompts == prompts_of(documents)
    assert prompts != prompts_of(documents, seed=1)
    alone = prompts_of(documents, tasks=["chain"])
    assert alone == [one for one in prompts if one.task == "chain"]


def test_answers_stand_in_the_text_as_often_as_they_should(documents):
    for one in prompts_of(documents):
        answers = [part.strip(", ") for part in one.answers]
        if one.task == "common_word":
            words = [line.split(". ")[1] for line in one.context.splitlines()]
            often = words.count(answers[0])
            assert all(words.count(word) < often / 2 for word in set(words) - set(answers))
        elif one.task == "chain":
            assert len(answers) == 4 and all(name in one.context for name in answers)
            assert [one.context.count(name) for name in answers] == [2, 2, 2, 1]
        elif one.task == "article":
            assert one.context.count(one.question.split('"')[1] + one.answers[0]) >= 1
        else:
            assert [one.context.count(number) for number in answers] == [1] * len(answers)
        assert one.answers[0].strip(", ") not in one.question or one.task == "article"


def test_needles_stand_at_every_depth_alike(documents):
    """Chi-square over five depths; the fixed seed passes at the 1 % level."""
    found = [0] * 5
    for one in prompts_of(documents, tasks=["needle"], lengths=[300], per_task=100):
        depth = one.context.index("The secret number") / len(one.context)
        found[min(int(5 * depth), 4)] += 1
    assert chisquare(found).pvalue > 0.01


def test_what_cannot_be_made_is_refused(documents):
    with pytest.raises(DataError, match="no task 'nothing'"):
        prompts_of(documents, tasks=["nothing"])
    with pytest.raises(DataError, match="ask for more"):
        prompts_of(documents, lengths=[20])
    with pytest.raises(DataError, match="no sentences"):
        prompts_of([])


def test_answers_count_one_by_one():
    tokens = torch.tensor([1, 2, 3, 4])
    logits = torch.eye(5)[[1, 2, 3, 0]]
    assert answer_score(logits, [2, 2], tokens) == 0.5
    assert answer_score(logits, [4], tokens) == 0.0
    assert answer_score(logits, [1, 1, 1, 1], tokens) == 0.75


def test_agreement_with_itself_and_with_another():
    dense = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    targets = dense.argmax(dim=-1)
    same = agreement(dense, dense, targets)
    assert same.kl == 0.0 and same.agree == 1.0
    other = agreement(torch.zeros_like(dense), dense, targets)
    p = dense.softmax(dim=-1)
    expected = (p * (p.log() + torch.tensor(9.0).log())).sum(dim=-1).mean()
    assert other.kl == pytest.approx(float(expected), rel=1e-5)
    assert other.nll == pytest.approx(float(torch.tensor(9.0).log()), rel=1e-5)
