"""Names, verdicts and the view of loosened tokens in the FLy report, on rows made by hand."""

import numpy as np
import pytest
from said import bold, flat

from effllm.modules.decoding.drafts import FirstLayers, Given
from effllm.modules.decoding.joining import Decoder
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.proposers.lookup import PromptLookup
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.decoding.verifiers.fly import Fly
from effllm.modules.decoding.verifiers.margin import Margin
from effllm.modules.decoding.verifiers.typical import Typical
from effllm.modules.errors import DataError
from effllm.pipelines.reports.decoders.bench import Bench, loosened_places, text_table
from effllm.pipelines.reports.decoders.naming import Arm
from effllm.pipelines.reports.fly import answers
from effllm.pipelines.reports.fly.claims import answer, answers_kept, run_conditions, verdicts
from effllm.pipelines.reports.fly.loosened import class_table, loosened_in_context, pieces_of
from effllm.pipelines.reports.fly.replay import ReplayRows, knob_table
from effllm.pipelines.reports.page import Mark, Page, Passages, Table, split_interval


def described(proposer, verifier, draft=None, target=None):
    return Decoder(proposer, verifier, draft).about(target)


LOOKUP = PromptLookup(tokens=8)
LIBRARY = {**described(Nothing(), Exact()), "proposer": None, "verifier": None}
ARMS = {
    "plain": described(Nothing(), Exact()),
    "generate": {**LIBRARY, "library": "plain"},
    "generate_lookup": {**LIBRARY, "library": "lookup", "drafted": 8},
    "generate_other": {**LIBRARY, "library": "lookup", "drafted": 4},
    "exact": described(LOOKUP, Exact()),
    "fly": described(LOOKUP, Fly(window=3)),  # not the paper's window, drafter and K
    "no_window": described(LOOKUP, Fly(window=0)),
}


@pytest.mark.parametrize(
    ("about", "title"),
    [
        (ARMS["plain"], "Plain decoding"),
        (ARMS["exact"], "Prompt lookup, K=8: exact"),
        (ARMS["fly"], "Prompt lookup, K=8: FLy (W=3, gate 0.3)"),
        (ARMS["no_window"], "Prompt lookup, K=8: FLy (no window, gate 0.3)"),
        (
            described(LOOKUP, Fly(threshold=0.0, window_check="official")),
            "Prompt lookup, K=8: FLy (W=6, no gate, official window)",
        ),
        (described(LOOKUP, Margin()), "Prompt lookup, K=8: margin 0.3 nats"),
        (described(LOOKUP, Typical()), "Prompt lookup, K=8: typical (0.09, 0.3)"),
        (
            {**ARMS["plain"], "library": "lookup", "drafted": 8, "proposer": None},
            "transformers: prompt lookup, K=8",
        ),
    ],
)
def test_arms_are_named_by_what_they_are(about, title):
    assert Arm("key", about).title == title


def test_a_draft_model_is_named_by_its_size_or_its_place_in_the_target(tiny_llama):
    from functools import partial

    from effllm.modules.decoding.proposers.draft import DraftModel, InnerLookup
    from effllm.modules.decoding.proposers.draft_tree import DraftTree

    factory = partial(DraftModel, tokens=6, lookup=InnerLookup())
    about = described(factory, Exact(), FirstLayers(1), tiny_llama)
    name = "First 1 of 2 layers with lookup inside, K=6: exact"
    assert Arm("a", about).title == name and Arm("a", about).speculates
    about = described(factory, Exact(), Given(tiny_llama))
    millions = f"{tiny_llama.num_parameters() / 1e6:.3g}"
    assert Arm("a", about).title.startswith(f"Draft model of {millions}M with lookup")
    about = described(partial(DraftTree, widths=[3, 2]), Exact(), Given(tiny_llama))
    assert Arm("a", about).title == f"Draft model of {millions}M, tree 3+2: exact"
    assert Arm("a", about).tokens == 5 and Arm("a", about).speculates


def row(arm, number, *, rounds=50, nll=1.0, seconds=2.0, correct=None, **more):
    return {
        "set": arm,
        "id": f"p{number}",
        "group": "continue",
        "prompt_tokens": 10,
        "tokens": 100,
        "emitted": 99,
        "rounds": rounds,
        "nll": nll,
        "seconds": seconds,
        "correct": correct,
        "first_difference": None,
        "events": [],
        **more,
    }


def bench_of(prompts=40, **arms):
    """A benchmark whose arms differ by the given values, with a little noise."""
    random = np.random.default_rng(0)
    rows = []
    for name in ARMS:
        for number in range(prompts):
            values = dict(arms.get(name, {}))
            values["nll"] = values.get("nll", 1.0) + float(random.normal(0, 0.01))
            values["seconds"] = values.get("seconds", 2.0) * float(random.uniform(0.95, 1.05))
            rows.append(row(name, number, **values))
    return Bench.of(rows, ARMS, 1000)


def outcomes(**arms):
    return {one.claim: one.outcome for one in flat(verdicts(bench_of(**arms)))}


def the(found, words):
    (outcome,) = {outcome for claim, outcome in found.items() if words in claim}
    return outcome


def test_verdicts_follow_the_paired_differences():
    found = outcomes(
        exact={"seconds": 1.5},
        fly={"rounds": 30, "seconds": 1.8, "nll": 1.02},
        no_window={"rounds": 20, "nll": 1.4},
    )
    assert the(found, "beats plain") == "supported"
    assert the(found, "more tokens per pass") == "supported under other conditions"
    assert the(found, "faster than exact") == "not supported under other conditions"
    assert the(found, "keeps the target's quality") == "supported"
    assert the(found, "without the window") == "supported under other conditions"
    found = outcomes(fly={"nll": 1.3}, no_window={"rounds": 80})
    assert the(found, "keeps the target's quality") == "not supported"
    assert the(found, "without the window") == "not supported under other conditions"
    assert the(found, "more tokens per pass") == "inconclusive"
    assert not any("answers" in claim for claim in found)  # no prompt has one


def test_the_answer_is_flys_speed_over_plain_and_exact_decoding_and_its_price():
    said = answer(bench_of(exact={"seconds": 1.6}, fly={"seconds": 1.0, "nll": 1.05}))
    assert said.startswith("Prompt lookup, K=8: FLy (W=3, gate 0.3) decodes 1.99 [")
    assert ", 1.59 [" in said and "is +0.05" in said and "less likely" in said
    plain = [row("plain", number) for number in range(9)]
    assert answer(Bench.of(plain, {"plain": ARMS["plain"]}, 10)) == ""


def test_an_arm_with_other_prompts_is_refused():
    rows = [row("plain", 0), row("plain", 1), row("exact", 0)]
    with pytest.raises(DataError, match=r"arm exact has rows of other prompts.*\(1 against 2\)"):
        Bench.of(rows, {name: ARMS[name] for name in ("plain", "exact")}, 10)


def test_our_arms_are_compared_with_what_transformers_has_for_them():
    found = outcomes(generate={"seconds": 3.0}, generate_lookup={"seconds": 1.0})
    assert the(found, "faster than transformers: generate") == "supported"
    assert the(found, "faster than transformers: prompt lookup, K=8") == "not supported"
    assert not any("K=4" in claim for claim in found)  # ours drafts eight
    assert not any("assisted" in claim for claim in found)  # ours has no draft model


def test_assisted_generation_is_compared_with_a_chain_of_the_same_draft(tiny_llama):
    from functools import partial

    from effllm.modules.decoding.proposers.draft import DraftModel
    from effllm.modules.decoding.proposers.draft_tree import DraftTree

    def ours(factory, draft=tiny_llama):
        return described(factory, Exact(), Given(draft))

    chain, tree = ours(partial(DraftModel, tokens=3)), ours(partial(DraftTree, widths=[3]))
    other = ours(partial(DraftModel, tokens=3), FirstLayers(1).of(tiny_llama))
    library = {**chain, "library": "assisted", "drafted": 3, "proposer": None, "verifier": None}
    arms = {"plain": ARMS["plain"], "tree": tree, "other": other, "chain": chain}
    arms["generate_assisted"] = library
    rows = [
        row(name, number, seconds=1.0 if name == "chain" else 2.0)
        for name in arms
        for number in range(9)
    ]
    found = {one.claim: one.outcome for one in flat(verdicts(Bench.of(rows, arms, 100)))}
    assert the(found, "faster than transformers: assisted generation, K=3") == "supported"


def answered(right, lost, *, prompts=300, won=0, arm="fly", conditions=()):
    """The verdict on answers of an arm that lost some of the right ones."""
    rows = [
        row(name, n, correct=float(n < right if name == "plain" else lost <= n < right + won))
        for name in ("plain", arm)
        for n in range(prompts)
    ]
    bench = Bench.of(rows, {name: PAPERS[name] for name in ("plain", arm)}, 500, conditions)
    (verdict,) = answers_kept(bench, bench.about[arm])
    return verdict


SIBLING = {"parameters": 8_030_261_248, "layers": 32, "of_layers": None}
PAPERS = {
    **ARMS,
    "paper": {
        **described(LOOKUP, Fly(window=6)),
        "proposer": {"class": "DraftModel", "tokens": 15, "lookup": True},
        "draft": SIBLING,
    },
}


@pytest.mark.parametrize(
    ("right", "lost", "outcome"),
    [
        (60, 0, "inconclusive"),  # up to 4.9 % may be lost, however many prompts there were
        (298, 0, "inconclusive"),
        (299, 0, "reproduced"),
        (600, 2, "inconclusive"),
        (630, 2, "reproduced"),
        (200, 20, "not reproduced"),
        (4, 0, "no verdict"),
    ],
)
def test_keeping_all_answers_is_shown_by_right_answers_not_by_prompts(right, lost, outcome):
    found = answered(right, lost, prompts=700, arm="paper")
    assert found.outcome == outcome
    assert f"Lost {lost} of the {right}" in found.evidence
    if (right, lost) == (60, 0):
        assert "0.0 to 4.9 %" in found.evidence


def test_answers_that_were_won_count_before_the_paper_is_said_to_be_wrong():
    assert answered(200, 20, won=20, arm="paper").outcome == "inconclusive"


def test_conditions_of_the_arm_and_of_the_run_stand_in_the_verdict():
    found = answered(200, 20, conditions=run_conditions("own/SmolLM2", "from articles"))
    assert found.outcome == "not supported under other conditions"
    assert found.conditions == (
        "drafter = prompt lookup alone, paper a model of 8.03B with lookup inside",
        "W = 3, paper 6",
        "K = 8, paper 15 or 25",
        "target = SmolLM2, paper Llama-3.1-70B-Instruct or Llama-3.1-405B-Instruct",
        "prompts = from articles, paper gsm8k or humaneval or mbpp or mgsm",
    )
    assert run_conditions("meta-llama/Llama-3.1-70B-Instruct", "gsm8k") == ()


def test_pieces_join_to_the_text_and_keep_characters_whole(tokenizer):
    text = "a é\n<b> 終わり"
    tokens = tokenizer(text)["input_ids"]
    pieces = pieces_of(tokenizer, tokens)
    assert "".join(pieces) == text and len(pieces) == len(tokens) > len(text)
    assert "é" in pieces and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert pieces_of(tokenizer, tokens[:-1])[-1].endswith("\N{REPLACEMENT CHARACTER}")


@pytest.fixture
def loosened_bench(tokenizer):
    plain, fly = (tokenizer(text)["input_ids"] for text in ("go <by> car now", "go <by> bus 7ow"))
    event = {
        "prefix": 12,
        "drafted_probability": 0.2,
        "chosen_probability": 0.4,
        "gate": 0.7,
        "loosened": True,
    }
    events = [
        {**event, "position": 6, "drafted": fly[8], "chosen": plain[8]},
        {**event, "position": 10, "drafted": fly[12], "chosen": plain[12]},
        {**event, "position": 11, "drafted": fly[13], "chosen": plain[12], "loosened": False},
    ]
    shared = {"nll": 1.0, "distinct": 1.0, "longest_repeat": 0}
    rows = [
        row("plain", 0, **shared) | {"output": plain, "tokens": len(plain)},
        row("fly", 0, **shared, first_difference=8, events=events)
        | {"output": fly, "tokens": len(fly)},
    ]
    return Bench.of(rows, {name: ARMS[name] for name in ("plain", "fly")}, 100)


def test_loosened_tokens_stand_in_their_text(loosened_bench, tokenizer, tmp_path):
    text, passages, facts = loosened_in_context(loosened_bench, tokenizer, {"p0": "Where to?"})
    assert "FLy (W=3" in text.body
    assert isinstance(passages, Passages) and passages.title == "p0: … Where to?"
    kept = passages.texts["FLy"]
    assert [(one.text, one.label) for one in kept if isinstance(one, Mark)] == [
        ("b", "1"),
        ("7", "2"),
    ]
    assert passages.texts["Plain decoding"] == ["go <by> ", Mark("car now")]
    assert isinstance(facts, Table)
    assert list(facts.rows[0]) == ["1  b", "c", "0.200", "0.400", "0.70", "us␣"]
    page = Page("t", "s")
    page.add(passages, facts)
    page.write(tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert "&lt;by&gt;" in html and "<mark title=" in html and "<sup>2</sup>" in html
    assert "<by>" not in html and "<u" in html
    assert "    go <by> ⟦b⟧1us ⟦7⟧2ow" in (tmp_path / "report.md").read_text()


def test_loosened_tokens_are_counted_by_class_and_place(loosened_bench, tokenizer):
    (cells,) = class_table(loosened_bench, tokenizer).rows
    assert list(cells[1:]) == ["1 of 2 (50 %)", "1 of 1 (100 %)"]  # of words and digits
    assert loosened_places(loosened_bench.arms["fly"][0]) == [8, 12]
    rows = text_table(loosened_bench).rows
    assert [list(one[-2:]) for one in rows] == [["1/1", "1/1"], ["0/1", "1/1"]]
    loosened_bench.arms["fly"][0]["first_difference"] = 3  # before anything was loosened
    assert list(text_table(loosened_bench).rows[1][-2:]) == ["0/1", "0/1"]


def test_intervals_are_split_off_and_other_cells_are_not():
    assert split_interval("+1.92 [-1.80, 2.05]") == ("+1.92", "[-1.80, 2.05]")
    assert split_interval("1.2e+06 [978,078, 1.6e+06]") == ("1.2e+06", "[978,078, 1.6e+06]")
    assert split_interval("2,168 [1,682, 2,821]") == ("2,168", "[1,682, 2,821]")
    for cell in ("", "a [b]", "3 of 4 (75 %)", "text 1 [2, 3]"):
        assert split_interval(cell) == (cell, "")


def test_the_replay_turns_one_knob_at_a_time():
    def swept(rule, **settings):
        value = {"value": 1.0, "low": 1.0, "high": 1.0}
        keys = ("tau", "tau_over_exact", "loosened_share", "loosened_tokens")
        return {"arm": "exact", "rule": rule, **settings, **dict.fromkeys(keys, value)} | {
            "regret": None,
            "loosened": 0,
        }

    rows = [swept("exact", tokens=tokens) for tokens in (4, 8)]
    rows += [
        swept("fly", tokens=k, window=w, threshold=t, measure=m, window_check=c)
        for k in (4, 8)
        for w in (0, 3)
        for m, t in (("top", 0.0), ("top", 0.3), ("normalized", 0.1))
        for c in ("full", "official")
    ]
    rows += [swept("margin", tokens=tokens, margin=0.3) for tokens in (4, 8)]
    centre = {"tokens": 8, "window": 3, "threshold": 0.3, "measure": "top", "window_check": "full"}
    data = ReplayRows(rows, {"exact": Arm("exact", ARMS["exact"])}, centre)
    table = knob_table(data, "exact")
    assert [one[0] for one in table.rows] == [
        "exact",
        "FLy as above",
        "W=0",
        "no gate",
        "gate 0.1 of ln V",
        "official window",
        "K=4",
        "margin 0.3 nats",
    ]
    assert table.columns[0] == "Prompt lookup"


def test_answers_are_compared_item_by_item():
    def row(arm, number, *, correct, text="7", loosened=0):
        answer = {"text": text, "tokens": 3, "emitted": 2, "rounds": 1, "loosened": loosened}
        return {"set": arm, "group": "recall", "id": number, "correct": correct, **answer}

    items = range(400)
    rows = [row("plain", n, correct=n % 2) for n in items]
    rows += [row("exact", n, correct=n % 2) for n in reversed(items)]
    rows += [
        row("fly", n, correct=n % 2 and n > 40, text="8" if n <= 40 else "7", loosened=1)
        for n in items
    ]
    about = {name: ARMS[name] for name in ("plain", "exact", "fly")}
    bench = Bench.of(rows, about, 1000)
    fly, exact = flat(answers.verdicts(bench, "tiny"))
    assert exact.outcome == "supported" and exact.evidence.startswith("400 of 400")
    assert fly.outcome == "not supported under other conditions"  # it lost 20 right answers of 200
    assert "prompts = recall, paper gsm8k or humaneval or mbpp or mgsm" in fly.conditions
    assert "Right answers 180 against 200 of 400; change -5.0 [" in fly.evidence
    table = answers.answer_table(bench)
    plain, exact_cells, fly_cells = table.rows
    assert plain[1].startswith("50.0 [") and plain[2:4] == ["", ""]
    assert exact_cells[2:4] == ["+0.0 [+0.0, +0.0]", "400"]
    assert fly_cells[2].startswith("-5.0 [") and fly_cells[3] == "359"
    assert bold(table) == {"recall, right, %": ["Prompt lookup, K=8: exact"]}
    rows[len(items)]["text"] = "9"  # the exact arm's last item
    said = flat(answers.verdicts(Bench.of(rows, about, 1000), "tiny"))
    assert said[-1].outcome == "not supported"
