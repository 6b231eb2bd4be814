"""Which types `auto` means on which machine."""

import platform
import sys

import pytest
from omegaconf import OmegaConf

from effllm.pipelines.commands import composing
from effllm.pipelines.engine import processor
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.processor import computes_in_bfloat16, settle_types, timing_machine


def machine(root, *, flags=None, nvidia=False):
    if flags is not None:
        (root / "proc").mkdir(parents=True, exist_ok=True)
        (root / "proc/cpuinfo").write_text(f"processor\t: 0\nmodel name\t: x\n{flags}\n")
    if nvidia:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        (root / "proc/driver/nvidia/version").write_text("NVRM version: 1\n")
    return root


@pytest.mark.parametrize(
    ("flags", "able"),
    [
        ("flags\t\t: fpu avx avx2 avx512f avx512_bf16 avx512_vnni", True),  # Zen 4, Cooper Lake
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", True),  # Sapphire Rapids
        ("flags\t\t: fpu avx avx2 avx512f avx512bw avx512_vnni", False),  # older Xeons
        ("flags\t\t: fpu avx avx2", False),  # Zen 3, most laptops
        ("Features\t: fp asimd i8mm bf16 dgh", True),  # ARM servers
        ("Features\t: fp asimd asimddp", False),
        ("bugs\t\t: bf16", False),
        (None, False),  # not Linux
    ],
)
def test_the_processors_flags_decide(tmp_path, flags, able):
    assert computes_in_bfloat16("cpu", root=machine(tmp_path, flags=flags)) is able


@pytest.mark.parametrize(
    ("device", "nvidia", "torch", "able"),
    [
        ("auto", True, "2.13.0", True),
        ("cuda", True, "2.13.0", True),
        ("cpu", True, "2.13.0", False),
        ("auto", False, "2.13.0", False),
        ("auto", True, "2.13.0+cpu", False),  # this torch would run on the processor
    ],
)
def test_a_device_that_will_be_used_counts_as_able(
    tmp_path, monkeypatch, device, nvidia, torch, able
):
    monkeypatch.setattr(processor, "version", lambda name: torch)
    root = machine(tmp_path, flags="flags : avx2", nvidia=nvidia)
    assert computes_in_bfloat16(device, root=root) is able


def test_a_time_knows_the_device_the_threads_and_the_compiler(tmp_path, monkeypatch):
    root = machine(tmp_path, flags="flags : avx2", nvidia=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert timing_machine("cpu", root=root) == {"device": "x", "threads": 3, "compiler": False}
    for number, name in enumerate(("NVIDIA H200", "NVIDIA L4")):
        card = root / f"proc/driver/nvidia/gpus/000{number}"
        card.mkdir(parents=True)
        (card / "information").write_text(f"Model: \t\t {name}\nIRQ: 7\n")
    monkeypatch.setattr(processor, "version", lambda name: "2.13.0")
    assert timing_machine("cuda:1", root=root) == {"device": "NVIDIA L4"}
    assert timing_machine("auto", root=root) == {"device": "NVIDIA H200"}


def test_it_is_what_torch_finds():
    import torch

    found = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        assert computes_in_bfloat16("cpu") == found


def test_only_auto_is_replaced_at_any_depth():
    fields = {
        "a": {"dtype": "auto", "source": [{"dtype": "auto"}], "precision": "auto"},
        "b": {"dtype": "float16", "measure": "auto"},
    }
    settle_types(fields, able=False)
    assert fields == {
        "a": {"dtype": "float32", "source": [{"dtype": "float32"}], "precision": "32-true"},
        "b": {"dtype": "float16", "measure": "auto"},
    }


def test_the_type_enters_the_digest_and_decoding_keeps_its_own(store, monkeypatch):
    config = composing.compose(["paper=fly"])

    def digests(able, **budget):
        monkeypatch.setattr(composing, "computes_in_bfloat16", lambda device: able)
        said = OmegaConf.merge(config, {"budget": budget})
        return {one.name: one.digest for one in build_graph(composing.resolve(said)[0], store)}

    able, other = digests(True), digests(False)
    assert able == digests(False, dtype="bfloat16", decoding={"draft_precision": "bf16-mixed"})
    assert other == digests(True, dtype="float32", decoding={"draft_precision": "32-true"})
    same = {name for name in able if able[name] == other[name]}
    assert {"traces", "prompts"} <= same and "draft" not in same  # decoded, and trained
