"""Every paper at every scale composes and binds; stage files show and explain all fields."""

import dataclasses
import hashlib
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from effllm.modules.errors import ConfigError
from effllm.pipelines.commands.composing import CONF_DIR, compose, resolve
from effllm.pipelines.engine.building import one_a_line
from effllm.pipelines.engine.executor import build_stages
from effllm.pipelines.engine.graph import build_graph, build_source, check_fields, load_stage
from effllm.pipelines.engine.identity import targets_of
from effllm.pipelines.engine.store import Store

CONF = Path(CONF_DIR)
ROOT = CONF.resolve().parent
PAPERS = sorted(path.stem for path in (CONF / "paper").glob("*.yaml"))
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_composes_fits_its_classes_and_keeps_its_digests(
    paper, scale, tmp_path, monkeypatch
):
    # The same on every machine: bfloat16 is there, no hub cache is, times have no machine.
    monkeypatch.setattr(
        "effllm.pipelines.commands.composing.computes_in_bfloat16", lambda device: True
    )
    for module in ("modeling.sources", "data.texts", "data.published"):
        monkeypatch.setattr(
            f"effllm.modules.{module}.resolved_commit", lambda name, kind, revision: revision
        )
    pipeline, _ = resolve(compose([f"paper={paper}", f"scale={scale}"]))
    instances = build_graph(pipeline, Store(tmp_path))  # checks stages, fields, links and kinds
    problems = [fault for instance in instances for fault in check_fields(instance)]
    assert not problems, one_a_line(problems)
    digests = [(instance.name, instance.stage, instance.digest) for instance in instances]
    found = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    file = Path(__file__).parent / "plans" / f"{paper}.json"
    recorded = json.loads(file.read_text()) if file.is_file() else {}
    assert recorded.get(scale) == found, (
        f"results of {paper} at {scale} have other digests than before, so that stored ones are "
        f'made again; if that is meant, write "{scale}": "{found}" into {file.name}'
    )


def test_no_two_classes_that_configurations_name_share_a_name():
    targets = {
        target
        for path in CONF.rglob("*.yaml")
        for target in re.findall(r"_target_: *([\w.]+)", path.read_text())
    }
    names = [target.rpartition(".")[2] for target in targets]
    assert len(names) > 80 and len(names) == len(set(names))


@pytest.mark.parametrize(
    "group", ["model", "data", "pruner", "pattern", "logger", "baseline", "unit_budget"]
)
def test_every_option_of_every_group_binds(group):
    problems = []
    for path in sorted((CONF / group).glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        for target in targets_of(config):
            module, _, name = target.rpartition(".")
            cls = getattr(importlib.import_module(module), name)
            try:
                inspect.signature(cls).bind(**{k: v for k, v in config.items() if k != "_target_"})
            except TypeError as error:
                problems.append(f"{path.name}: {error}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "prompts").glob("*.yaml")))
def test_every_prompt_set_can_stand_in_for_the_articles(name, tmp_path):
    file = tmp_path / "question.jsonl"
    row = {"question": "1 + 1?", "answer": "#### 2", "turns": ["1 + 1?"], "category": "sums"}
    file.write_text(json.dumps(row))
    overrides = ["paper=fly", "scale=smoke", f"prompts@pipeline.prompts={name}"]
    if "path: " in (CONF / "prompts" / f"{name}.yaml").read_text():
        overrides.append(f"pipeline.prompts.source.path={file}")
    instances = build_graph(resolve(compose(overrides))[0], Store(tmp_path))
    prompts = next(one for one in instances if one.name == "prompts")
    for field in prompts.cls.SOURCES:
        build_source(prompts, field)
    bench = next(one for one in instances if one.name == "bench")
    assert bench.inputs["prompts"] == ["prompts"]


def stage_files():
    return sorted((CONF / "stage").glob("*.yaml"))


@pytest.mark.parametrize("path", stage_files(), ids=lambda path: path.stem)
def test_stage_files_show_all_fields_and_inputs(path):
    config = yaml.safe_load(path.read_text())
    cls = load_stage(config["_target_"], path.name)
    shown = {key for key in config if key not in ("_target_", "inputs", "defaults")}
    for entry in config.get("defaults", []):
        if isinstance(entry, dict):
            shown |= {key.partition("@")[2] for key in entry}
    assert shown == {field.name for field in dataclasses.fields(cls)}
    assert set(config.get("inputs") or {}) == set(cls.INPUTS)


@pytest.mark.parametrize("path", stage_files(), ids=lambda path: path.stem)
def test_stage_classes_explain_all_their_fields(path):
    """Each in the class that declares it."""
    cls = load_stage(yaml.safe_load(path.read_text())["_target_"], path.name)
    for field in dataclasses.fields(cls):
        owner = next(
            one for one in cls.__mro__ if field.name in vars(one).get("__annotations__", {})
        )
        assert f"{field.name}:" in (owner.__doc__ or "")


def test_no_unquoted_ratio_hides_in_a_config():
    """`2:4` without quotes is the integer 124 in YAML."""
    found = [
        f"{path.relative_to(CONF)}:{number}"
        for path in CONF.rglob("*.yaml")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"(?<![\w'\"/.-])\d+:\d+(?![\w'\"])", line.partition("#")[0])
    ]
    assert not found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["paper=sds", "bugdet.dtype=float16"], "bugdet"),
        (["paper=nothing"], "nothing.*sds"),
        (["paper=sds", "pattern@pipeline.wanda_2of4.prune.pattern=2:4"], "2:4.*2of4"),
        ([], "paper"),
        (["paper=sds", "model=hf"], "model.name"),
        (["paper=sds", "scale=huge"], "huge.*smoke"),
    ],
)
def test_wrong_overrides_are_refused_on_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(compose(overrides))
    assert "\n" not in str(caught.value)


def test_a_yaml_ratio_is_explained(tmp_path):
    value = yaml.safe_load("pattern: 2:4")["pattern"]
    pipeline, _ = resolve(compose(["paper=sds", "scale=smoke"]))
    pipeline["wanda_half"]["prune"]["pattern"] = value
    graph = build_graph(pipeline, Store(tmp_path))
    instance = next(instance for instance in graph if instance.name == "wanda_half.prune")
    with pytest.raises(ConfigError, match="found 124.*unquoted 2:4"):
        build_stages([instance])


def test_kernels_is_no_package():
    """A top-level package `kernels` would shadow Hugging Face's and break transformers."""
    assert (ROOT / "kernels").is_dir() and not (ROOT / "kernels" / "__init__.py").exists()


def test_help_and_plan_do_not_import_torch():
    code = (
        "import sys; from effllm.pipelines.cli import main; "
        "main(['--help']); main(['plan', 'paper=sds', 'scale=smoke']); "
        "heavy = [m for m in ('torch', 'transformers', 'lightning', 'wandb') if m in sys.modules]; "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_modules_do_not_import_pipelines():
    for path in (ROOT / "modules").rglob("*.py"):
        text = path.read_text()
        for banned in ("effllm.pipelines", "import hydra", "import wandb", "omegaconf"):
            assert banned not in text, f"{path}: {banned}"


def test_one_file_for_testing_and_for_calibration_is_refused(tmp_path):
    """Before any work: its test text could be calibration text."""
    text = tmp_path / "text.txt"
    text.write_text("a line\n")
    common = ["paper=sds", "data=wikitext2", f"data.path={text}"]
    graph = [*common, "data@calibration_data=wikitext2", f"calibration_data.path={text}"]
    with pytest.raises(ConfigError, match="calibration_text .*test_text .*same file"):
        build_graph(resolve(compose(graph))[0], Store(tmp_path))
    other = tmp_path / "other.txt"
    other.write_text("another line\n")
    graph[-1] = f"calibration_data.path={other}"
    assert build_graph(resolve(compose(graph))[0], Store(tmp_path))
    dealt_anew = ["paper=sds", "calibration_data.seed=7"]
    with pytest.raises(ConfigError, match="same file"):
        build_graph(resolve(compose(dealt_anew))[0], Store(tmp_path))


def test_a_model_out_of_reach_is_refused_before_any_work():
    from effllm.modules.errors import DataError
    from effllm.modules.modeling.sources import PretrainedFolder

    with pytest.raises(DataError, match="nobody/nothing.*from the hub.*model.path="):
        PretrainedFolder(name="nobody/nothing").check()


def test_a_device_that_is_not_there_is_refused_before_any_work(monkeypatch):
    import torch

    from effllm.pipelines.commands.launch import choose_device

    def chosen(*overrides):
        return choose_device(
            resolve(compose(["paper=sds", "scale=smoke", *overrides]))[1]["trainer"]
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for overrides, message in (
        (["trainer.accelerator=gpu"], "trainer.accelerator=gpu: no CUDA device found; use cpu or"),
        (["trainer.devices=[1]"], r"trainer.devices=\[1\]: processors have no numbers"),
        (["trainer.devices=2"], "trainer.strategy=auto: several devices are used by ddp_spawn"),
        (["trainer.accelerator=tpu"], "trainer.accelerator: expected 'auto', 'cpu' or 'gpu'"),
        (["+trainer.device=cpu"], "trainer.device: there is no setting device"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            chosen(*overrides)
        assert "\n" not in str(caught.value)
    assert chosen() == chosen("trainer.devices=2", "trainer.strategy=ddp_spawn") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen() == "cuda" and chosen("trainer.devices=[1]") == "cuda:1"
    assert chosen("trainer.accelerator=cpu") == "cpu"
    with pytest.raises(ConfigError, match=r"trainer.devices=\[2\]: this machine has 2 CUDA"):
        chosen("trainer.devices=[2]")


def test_keys_of_the_trainer_that_change_results_enter_digests_of_what_is_trained(tmp_path):
    def digests(*overrides):
        pipeline, _ = resolve(compose(["paper=cospec", "scale=smoke", *overrides]))
        graph = build_graph(pipeline, Store(tmp_path))
        return {one.name: one.digest for one in graph}

    shipped = digests()
    machine = ("accelerator=cpu", "devices=2", "strategy=ddp_spawn", "log_every_n_steps=5")
    assert digests(*(f"trainer.{one}" for one in machine)) == shipped
    for change in (
        "precision=bf16-mixed",
        "gradient_clip_val=1.0",
        "accumulate_grad_batches=2",
        "callbacks=[{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: loss}]",
    ):
        assert digests(f"trainer.{change}")["toy.pair"] != shipped["toy.pair"]
