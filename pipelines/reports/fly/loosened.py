"""Loosened tokens where they stand: what was kept, what the target wanted, where that leads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from effllm.pipelines.reports.decoders.bench import Bench, loosened_places
from effllm.pipelines.reports.page import Block, Mark, Passages, Table, Text
from effllm.pipelines.reports.table import Column, columns, make_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 4  # prompts
_HALF = "\N{REPLACEMENT CHARACTER}"  # what half a character decodes to
_CLASSES = ("words", "digits", "punctuation", "space")


def loosened_in_context(
    bench: Bench, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, str]
) -> list[Block]:
    """Outputs of the FLy arm that loosened most, one prompt of each kind, beside plain decoding.

    Args:
        bench: the benchmark.
        tokenizer: of the target.
        prompts: id -> text.
    """
    arm = most_loosened(bench)
    if arm is None:
        return [Text("No arm with FLy's rule kept a token that the target would not have chosen.")]
    found: list[Block] = [
        Text(
            f"{bench.about[arm].title}. Marked: tokens that were kept although the target would "
            "have chosen another. Underlined: where plain decoding, the target's own text, goes "
            "another way. The table under each pair gives the target's choice at each mark, both "
            "probabilities under the target, the gate's measure (entropy of the three most likely "
            "tokens, nats) and the next drafted tokens, all of which the target agreed with."
        )
    ]
    shown: set[str] = set()
    for row, plain in zip(bench.arms[arm], bench.arms["plain"], strict=True):
        if row["group"] in shown or not loosened_places(row) or len(shown) == _SHOWN:
            continue
        shown.add(row["group"])
        window = int(bench.about[arm].verifier["window"])
        found += _one_prompt(row, plain, tokenizer, prompts.get(row["id"], ""), window)
    return found


def most_loosened(bench: Bench) -> str | None:
    """The arm with FLy's rule that loosened most tokens; its ablations only if FLy kept none."""
    counts = {
        arm: (bench.about[arm].is_fly, sum(len(loosened_places(row)) for row in mine))
        for arm, mine in bench.arms.items()
        if bench.about[arm].verifier.get("class") == "Fly"
    }
    counts = {arm: count for arm, count in counts.items() if count[1]}
    return max(counts, key=lambda arm: counts[arm]) if counts else None


def class_table(bench: Bench, tokenizer: PreTrainedTokenizerBase) -> Table | None:
    """What drafted tokens at mismatches are made of, and how many of each were kept."""
    from effllm.modules.evaluation.generations import token_class

    judged: dict[str, Counter[str]] = {}
    kept: dict[str, Counter[str]] = {}
    for arm, mine in bench.arms.items():
        events = [event for row in mine for event in row.get("events", [])]
        if bench.about[arm].lossless or not events:
            continue
        judged[arm], kept[arm] = Counter(), Counter()
        for event in events:
            kind = token_class(str(tokenizer.decode([event["drafted"]])))
            judged[arm][kind] += 1
            kept[arm][kind] += event["loosened"]

    def share(arm: str, kind: str) -> str:
        count, total = kept[arm][kind], judged[arm][kind]
        return f"{count} of {total} ({100 * count / total:.0f} %)" if total else ""

    if not judged:
        return None
    return make_table(
        judged,
        Column("Mismatches kept, by the drafted token", lambda arm: bench.about[arm].title),
        *columns({kind: kind for kind in _CLASSES}, share),
        note="Of the mismatches that were judged, those up to the first rejected one of a round. A "
        "token with a digit counts as digits. A digit that is kept wrongly is a wrong number.",
    )


def pieces_of(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[str]:
    """The text that each token adds; a character of several tokens belongs to its last one."""
    pieces, before = [], ""
    for count in range(1, len(tokens) + 1):
        text = str(tokenizer.decode(tokens[:count]))
        whole = text if count == len(tokens) else text.rstrip(_HALF)
        pieces.append(whole[len(before) :])
        before = whole if len(whole) > len(before) else before
    return pieces


def _one_prompt(
    row: dict[str, Any],
    plain: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    window: int,
) -> list[Block]:
    places = loosened_places(row)
    events = [event for event in row["events"] if event["loosened"]][: len(places)]
    pieces = pieces_of(tokenizer, row["output"])
    texts: list[str | Mark] = list(pieces)
    facts = []
    for number, (place, event) in enumerate(zip(places, events, strict=True), start=1):
        kept, chosen = (_visible(tokenizer, [event[key]]) for key in ("drafted", "chosen"))
        values = (event["drafted_probability"], event["chosen_probability"])
        gate = "" if event["gate"] is None else f"{event['gate']:.2f}"
        hint = f"the target's choice: {chosen}; p {values[0]:.3f} against {values[1]:.3f}"
        texts[place] = Mark(pieces[place] or kept, str(number), hint)
        after = row["output"][place + 1 : place + 1 + window]
        facts.append(
            [
                f"{number}  {kept}",
                chosen,
                *(f"{value:.3f}" for value in values),
                gate,
                _visible(tokenizer, after) if after else "no window",
            ]
        )
    own = pieces_of(tokenizer, plain["output"])
    fork = row["first_difference"]
    other: list[str | Mark] = ["".join(own[:fork])]
    if fork is not None:
        other.append(Mark("".join(own[fork:])))
    end = " ".join(prompt.split())[-160:]
    return [
        Passages(f"{row['id']}: … {end}", {"FLy": texts, "Plain decoding": other}),
        Table(
            ["Kept", "target's choice", "p(kept)", "p(choice)", "gate, nats", "then agreed with"],
            facts,
        ),
    ]


def _visible(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """Tokens as text whose spaces and line ends can be seen."""
    return str(tokenizer.decode(tokens)).replace(" ", "␣").replace("\n", "⏎")
