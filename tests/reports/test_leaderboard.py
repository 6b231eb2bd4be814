"""The leaderboard: what may stand side by side, and what is said of it."""

import json

import pytest

from effllm.pipelines.cli import main

WINDOWS = "test/enwiki-test-512x16-spread/ppl"


def row(method, perplexity=None, *, model="team/small", scale="cpu", texts=("enwiki",), **more):
    figures = {**({WINDOWS: perplexity} if perplexity else {}), **more}
    intervals = {WINDOWS: [perplexity - 1, perplexity + 1]} if perplexity else {}
    facts = {"paper": "sds", "method": method, "title": method.title(), "pattern": "2:4"}
    return {
        **facts,
        **{"seed": 0, "artifact": f"prune/{method}", "n": {}},
        **{"metrics": figures, "intervals": intervals},
        **{"scale": scale, "model": model, "texts": list(texts)},
    }


@pytest.fixture
def board(tmp_path, capsys):
    """`effllm leaderboard` over reports name -> rows; its exit code and what it printed."""

    def show(reports, *arguments):
        for name, rows in reports.items():
            folder = tmp_path / "reports" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "results.json").write_text(json.dumps(rows))
        code = main(["leaderboard", "--outputs", str(tmp_path), *arguments])
        return code, capsys.readouterr()

    show.folder = tmp_path / "leaderboard"
    return show


def test_the_same_windows_make_one_table_over_reports(board):
    one = [row("dense", 20.0), row("wanda", 90.0, weight_file_bytes=5e6)]
    two = [row("dense", 20.0), row("permuted", 70.0, weight_file_bytes=5e6)]
    code, said = board({"sds-cpu": one, "permutation-cpu": two})
    assert code == 0 and "3 results" in said.out  # dense is the same result twice
    page = (board.folder / "report.md").read_text()
    assert "Permuted, 2:4 has the best figure, perplexity 70" in page
    assert page.index("| Permuted") < page.index("| Wanda")
    (group,) = json.loads((board.folder / "leaderboard.json").read_text())
    assert [one["method"] for one in group["rows"]] == ["dense", "permuted", "wanda"]
    assert group["rows"][1]["intervals"]["perplexity"] == [69.0, 71.0]


def test_other_windows_models_and_scales_are_kept_apart(board):
    other = row("wanda", 5.0)
    other["metrics"] = {"test/enwiki-test-64x16-spread/ppl": 5.0}
    other["intervals"] = {}
    rows = [row("wanda", 90.0), row("wanda", 50.0, model="team/large"), other]
    board({"sds-cpu": rows, "sds-smoke": [row("wanda", 300.0, scale="smoke")]}, "--json")
    code, said = board({}, "--json")
    groups = json.loads(said.out)
    assert code == 0 and len(groups) == 3 and {one["scale"] for one in groups} == {"cpu"}
    assert len(json.loads(board({}, "--json", "--scale", "smoke")[1].out)) == 1
    assert len(json.loads(board({}, "--json", "--model", "LARGE")[1].out)) == 1


def test_what_could_not_be_used_is_never_the_best(board):
    rows = [row("oracle", right=0.99), row("cospec", right=0.9), row("target", right=0.6)]
    board({"cospec-cpu": rows})
    page = (board.folder / "report.md").read_text()
    assert "Cospec, 2:4 has the best figure" in page and "**99.0**" not in page


def test_what_could_not_be_used_is_not_the_smallest_either(board):
    sizes = {"dense": 9e6, "oracle": 1e6, "wanda": 5e6}
    rows = [row(name, 20.0, weight_file_bytes=size) for name, size in sizes.items()]
    board({"sds-cpu": rows})
    page = (board.folder / "report.md").read_text()
    losses = page[page.index("Perplexity worse by at most") :]
    assert "Wanda, 2:4 (5.0)" in losses and "Oracle, 2:4 (1.0)" not in losses


def test_nothing_to_show_is_one_line(board):
    code, said = board({"sds-cpu": [row("wanda", 90.0)]}, "--model", "huge")
    assert code == 1 and "no result to show: the reports have scales cpu" in said.err
    old = {key: value for key, value in row("wanda", 90.0).items() if key != "texts"}
    code, said = board({"sds-cpu": [old]})
    assert code == 1 and "sds-cpu were made by an older version" in said.err
