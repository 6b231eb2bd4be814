"""Plain configuration against the annotations of classes: the rules of `pipelines.building`."""

import pytest

from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.errors import ConfigError
from effllm.modules.sparsity.patterns import Grouped, Pattern
from effllm.pipelines.engine.building import build, load_class, one_a_line
from effllm.pipelines.stages.decoding.loading import DecodingArm, LibraryArm

GROUPED = "effllm.modules.sparsity.patterns.Grouped"
EXACT = "effllm.modules.decoding.verifiers.exact.Exact"
LOOKUP = "effllm.modules.decoding.proposers.lookup.PromptLookup"


def test_an_object_is_built_from_its_mapping():
    pattern = build("pattern", Pattern, {"_target_": GROUPED, "keep": 2, "group": 4})
    assert pattern == Grouped(keep=2, group=4)


def test_a_factory_may_lack_parameters():
    draft = {
        "_target_": "effllm.modules.decoding.proposers.draft.DraftModel",
        "_partial_": True,
        "tokens": 3,
    }
    arm = build("arm", DecodingArm, {"proposer": draft, "verifier": {"_target_": EXACT}})
    assert arm["proposer"].keywords == {"tokens": 3}
    assert isinstance(arm["verifier"], Exact)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": GROUPED, "keep": 2}, "pattern.group: no value; expected int"),
        ({"_target_": GROUPED, "keep": 2, "grup": 4}, "did you mean group"),
        ({"_target_": GROUPED, "keep": 2.0, "group": 4}, "pattern.keep: .*integer, found 2.0"),
        ({"_target_": GROUPED, "keep": True, "group": 4}, "pattern.keep: .*integer, found True"),
        ({"_target_": GROUPED, "keep": 4, "group": 4}, "pattern: need 0 < keep < group"),
        ({"_target_": EXACT}, "pattern: expected Pattern, found Exact"),
        ({"_target_": "os.system", "command": "true"}, "outside of effllm"),
        ({"_target_": "effllm.modules.hub.require_on_hub"}, "is no class"),
        ({"_target_": f"{GROUPED}s"}, "does not exist"),
        ({"_target_": GROUPED, "_partial_": 1}, "_partial_: expected true or false"),
        (124, "expected Pattern, found 124 .*2:4"),
        ("2of4", "expected Pattern, found '2of4'; choose a file by its group"),
    ],
)
def test_what_does_not_fit_is_refused_by_key(config, message):
    with pytest.raises(ConfigError, match=message):
        build("pattern", Pattern, config)


def test_the_nearest_kind_of_arm_says_what_is_wrong():
    kind = DecodingArm | LibraryArm
    with pytest.raises(ConfigError, match=r"arm.library: expected 'plain', .* found 'fast'"):
        build("arm", kind, {"library": "fast"})
    with pytest.raises(ConfigError, match=r"arm.verifier: no value; expected Verifier"):
        build("arm", kind, {"proposer": {"_target_": LOOKUP}})
    with pytest.raises(ConfigError, match=r"arm.proposer.prefer: expected 'earliest' or 'latest'"):
        build(
            "arm",
            kind,
            {"proposer": {"_target_": LOOKUP, "prefer": 5}, "verifier": {"_target_": EXACT}},
        )


def test_all_faults_are_told_and_equal_ones_once():
    lines = one_a_line(
        ["pipeline.a.seed: wrong", "pipeline.b.seed: wrong", "pipeline.a.dtype: wrong"]
    )
    assert lines == "pipeline.a.seed and 1 other: wrong\npipeline.a.dtype: wrong"


def test_packages_of_a_user_are_allowed_by_name():
    with pytest.raises(ConfigError, match="outside of"):
        load_class("toy_stages.Count", "here")
    assert load_class("toy_stages.Count", "here", ["toy_stages"]).__name__ == "Count"
