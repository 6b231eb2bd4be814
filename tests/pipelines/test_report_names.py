"""Reports stand side by side, named by what their runs differ in."""

import json
import re

import hydra
import pytest
from toy_stages import manifest_of

from effllm.modules.errors import ConfigError
from effllm.pipelines.commands.composing import CONF_DIR, compose, differences
from effllm.pipelines.commands.publishing import publish_report, refuse_other_report, report_name
from effllm.pipelines.engine.graph import Instance
from effllm.pipelines.reports.page import Page
from effllm.pipelines.reports.sds.page import ReportSds

SMOKE = ["paper=sds", "scale=smoke"]


def told(*overrides):
    """As in a run, where Hydra is initialised."""
    config = compose([*SMOKE, *overrides])
    with hydra.initialize_config_dir(CONF_DIR, version_base="1.3"):
        return differences(config, [*SMOKE, *overrides])


def named(*differs, name=None, scale="smoke"):
    return report_name({"paper": "sds", "scale": scale, "run": {"name": name}}, differs)


def facts(*differs):
    return {"paper": "sds", "scale": "smoke", "differs": list(differs)}


@pytest.fixture
def publish(store):
    """Publish a report whose page says `text`, as a run with these differences does."""

    def run(text, *differs, name=None):
        digest = text.encode().hex().ljust(64, "0")
        instance = Instance("report", "", ReportSds, {}, {}, digest=digest)
        if not store.folder("report_sds", digest).exists():
            work = store.work("report_sds", digest)
            work.mkdir(parents=True)
            Page("SDS", text).write(work)
            store.publish(work, manifest_of(instance))
        return publish_report(store, instance, named(*differs, name=name), facts(*differs))

    return run


def test_what_changes_no_pipeline_is_no_difference():
    assert told() == []
    machine = [
        "logger=none",
        "paths.outputs=/elsewhere",
        "trainer.accelerator=cpu",
        "execute.until=test",
    ]
    assert told(*machine, "run.name=mine", "hydra.job.num=3", "execute.refresh=[test]") == []
    assert told("trainer.precision=bf16-mixed") == []  # SDS trains nothing by gradient
    assert told("seed=0", "model=tiny_llama") == []  # as they are anyway
    assert told("seed=1", "logger=none", "model=tiny_opt") == ["model=tiny_opt", "seed=1"]
    assert told("~pipeline.magnitude_2of4.iht") == ["~pipeline.magnitude_2of4.iht"]


def test_names_are_safe_short_and_of_one_run_only():
    assert named() == "sds-smoke"
    assert named("seed=1") == "sds-smoke-seed=1"
    assert named("model=hf", "seed=1") == "sds-smoke-model=hf,seed=1"
    lists = [
        ["model.name=Qwen/Qwen3-0.6B"],
        ["model.name=Qwen_Qwen3-0.6B"],
        ["data.path=/home/a/mine.txt"],
        ["data.path=/home/b/mine.txt"],
        ["data.path='/tmp/$(rm -rf x); ä \udcff*'"],
        ["budget.test_sequences=4" * 20],
        ["budget.test_sequences=4" * 20, "seed=1"],
        ["~pipeline.test"],
        ["+pipeline.test=null"],
        [".=../.."],
    ]
    names = [named(*one) for one in lists]
    assert len(set(names)) == len(lists)
    assert all(re.fullmatch(r"[\w.=,@+-]{1,100}", name, re.ASCII) for name in names)
    assert names == [named(*one) for one in lists]


def test_a_chosen_name_is_taken_as_it_is_or_refused():
    assert named("seed=1", name="first-try") == "first-try"
    for name in ("", ".hidden", "a/b", "../up", "a b", "-rf", "x" * 200):
        with pytest.raises(ConfigError, match="run.name"):
            named(name=name)


def test_reports_of_other_settings_stand_side_by_side_and_say_so(publish, store):
    publish("usual")
    publish("another", "model=tiny_opt", "x=<b>&")
    folder = store.root / "reports"
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.html",
        "sds-smoke",
        named("model=tiny_opt", "x=<b>&"),
    ]
    index = (folder / "index.html").read_text()
    assert 'href="sds-smoke/index.html"' in index and "2 runs" in index
    plain, other = folder / "sds-smoke", folder / named("model=tiny_opt", "x=<b>&")
    original = store.folder("report_sds", b"usual".hex().ljust(64, "0"))
    for file in ("index.html", "report.md"):
        assert (plain / file).read_bytes() == (original / file).read_bytes()
    line = "Differs from paper=sds scale=smoke: model=tiny_opt, x=<b>&."
    assert (other / "report.md").read_text().splitlines()[:5] == ["# SDS", "", line, "", "another"]
    assert '</h1>\n<p class="note">Differs from paper=sds' in (other / "index.html").read_text()
    assert "x=&lt;b&gt;&amp;" in (other / "index.html").read_text()
    kept = json.loads((other / "run.json").read_text())
    assert kept["differs"] == ["model=tiny_opt", "x=<b>&"]
    assert kept["report"].startswith("report_sds/")


def test_another_result_of_the_same_settings_takes_the_place_with_a_word(publish):
    first = publish("first", "data=file")
    assert first.endswith("index.html") and publish("first", "data=file") == first
    assert publish("second", "data=file").startswith(f"{first} (in place of report_sds/")


def test_a_chosen_name_is_of_one_run(publish, store):
    publish("first", "seed=1", name="mine")
    publish("first", "seed=1", name="mine")  # the same run again
    with pytest.raises(ConfigError, match=r"mine holds .*another run \(.*seed=1\).*run\.name"):
        publish("second", "seed=2", name="mine")
    with pytest.raises(ConfigError, match="run.name"):  # and before any work
        refuse_other_report(store.root / "reports" / "mine", facts())
