"""Published long-context sets: columns, answers, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from effllm.modules.data.long_prompt_sources import LongQuestions
from effllm.modules.errors import DataError
from effllm.pipelines.commands.composing import CONF_DIR

ROW = {
    "context": "Long text. ",
    "question": "Which two?",
    "answer_prefix": " They are",
    "answer": ["12", "345"],
    "task": "two",
}


def source(tmp_path, rows, **changes):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "name": "toy",
        "context": "context",
        "question": "question",
        "prefix": "answer_prefix",
        "answers": "answer",
        "task": "task",
        "alternatives": False,
        "hub": None,
        "subset": None,
        "split": "test",
        "revision": "main",
        "homepage": "https://example.org/toy",
        "path": str(path),
        **changes,
    }
    return LongQuestions(**settings)


@pytest.mark.parametrize(
    ("changes", "settings", "question", "answers"),
    [
        ({}, {}, "Which two? They are", [" 12", ", 345"]),
        ({}, {"alternatives": True}, "Which two? They are", [" 12"]),
        ({}, {"prefix": None}, "Which two?", [" 12", ", 345"]),
        ({"answer_prefix": " They are: "}, {}, "Which two? They are:", [" 12", ", 345"]),
        ({"answer_prefix": "\nAnswer:\n"}, {}, "Which two?\nAnswer:\n", ["12", ", 345"]),
    ],
)
def test_answers_continue_the_question(tmp_path, changes, settings, question, answers):
    (found,) = source(tmp_path, [{**ROW, **changes}], **settings).prompts(4, seed=0)
    assert (found.id, found.task, found.context) == ("two-1", "two", "Long text. ")
    assert (found.question, found.answers) == (question, answers)


def test_tasks_are_drawn_apart(tmp_path):
    rows = [{**ROW, "task": "ab"[n % 2]} for n in range(9)]
    drawn = source(tmp_path, rows).prompts(3, seed=0)
    assert [one.task for one in drawn].count("a") == 3 and len(drawn) == 6
    assert {one.task for one in source(tmp_path, rows, task=None).prompts(3, seed=0)} == {"toy"}


@pytest.mark.parametrize(
    "row", [{}, {**ROW, "answer": []}, {**ROW, "answer": [3]}, {**ROW, "context": None}, [1]]
)
def test_other_rows_are_refused_by_line(tmp_path, row):
    with pytest.raises(DataError, match=r"set.jsonl, line 2: expected a JSON object with texts"):
        source(tmp_path, [ROW, row]).prompts(1, seed=0)


@pytest.mark.parametrize("name", ["ruler", "longbench"])
def test_ready_sets_fit_their_class(name):
    settings = yaml.safe_load(Path(CONF_DIR, "long_prompts", f"{name}.yaml").read_text())["source"]
    settings.pop("_target_")
    assert LongQuestions(**settings).identity()["name"] == settings["hub"]
