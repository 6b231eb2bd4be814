"""Orders in a vision transformer at smoke scale, through the command line."""

import json

import pytest
import torch

from effllm.modules.vision.digits import SIZES, digits
from effllm.pipelines.cli import main


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    settings = ["paper=permutation_vision", "scale=smoke", "logger=none"]
    assert main(["run", *settings, f"paths.outputs={folder}"]) == 0
    return folder


def test_splits_share_no_picture():
    pictures = {split: digits(split) for split in SIZES}
    assert {split: len(labels) for split, (_, labels) in pictures.items()} == SIZES
    assert sum(SIZES.values()) == 1797
    pixels = torch.cat([one for one, _ in pictures.values()]).flatten(1)
    assert pixels.min() == -1 and pixels.max() == 1
    assert len(pixels.unique(dim=0)) == 1797  # none comes twice in the set itself


def test_every_order_is_a_row_of_both_patterns(outputs):
    rows = json.loads(
        (outputs / "reports" / "permutation_vision-smoke" / "results.json").read_text()
    )
    found = {(row["pattern"], row["method"]) for row in rows}
    kinds = ["unchanged", *(f"gather/{kind}" for kind in ("ria", "swaps", "loss_swaps", "learned"))]
    assert {(pattern, kind) for pattern in ("2:4", "3:4") for kind in kinds} < found
    assert {("", "dense"), ("2:4", "free/swaps"), ("2:4", "folded/swaps")} < found
    assert {row["n"]["accuracy"] for row in rows} == {697}


def test_a_folded_model_sees_the_same(outputs):
    by_kind = {}
    for folder in (outputs / "artifacts" / "classify").iterdir():
        history = json.loads((folder / "subject.json").read_text())["history"]
        order = history[-1].get("permutation", {})
        if order.get("level") == "free":
            by_kind[history[-1]["stage"]] = (folder / "predictions.jsonl").read_text()
    assert by_kind["fold_permutation"] == by_kind["prune"]


def test_pictures_are_no_text(outputs, capsys):
    settings = ["paper=permutation_vision", "scale=smoke", "logger=none"]
    asked = ["+stage@pipeline.read=perplexity", "pipeline.read.inputs.model=base"]
    said = main(["run", *settings, f"paths.outputs={outputs}", *asked, "execute.until=read"])
    assert said == 1
    assert "are pictures; this stage needs windows of text" in capsys.readouterr().err
