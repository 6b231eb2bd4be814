"""Who may import whom: floors that only point down."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"calibration", "data", "evaluation", "inference", "modeling"}
METHODS = sorted({file.parent.name for file in ROOT.glob("modules/*/__init__.py")} - SHARED)


def imports(folder):
    """(file, module) of every effllm import below a folder, lazy ones too."""
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("effllm."):
                module = node.module.removeprefix("effllm.")
                yield file.name, module
                yield from ((file.name, f"{module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("kernels", ["modules", "pipelines"]),
        ("modules", ["pipelines"]),
        ("pipelines/engine", ["pipelines.commands", "pipelines.stages", "pipelines.reports"]),
        ("pipelines/stages", ["pipelines.commands", "pipelines.engine"]),
        ("modules/evaluation", [f"modules.{method}" for method in METHODS]),
        ("modules/modeling", [f"modules.{method}" for method in (*METHODS, "calibration")]),
        ("modules/calibration", [f"modules.{method}" for method in METHODS]),
        ("modules/inference", [f"modules.{method}" for method in METHODS]),
        ("modules/sparsity", ["modules.sds", "modules.structural", "modules.decoding"]),
        ("modules/sds", ["modules.structural", "modules.decoding", "modules.kvcache"]),
    ],
)
def test_no_arrow_points_up(folder, forbidden):
    found = list(imports(folder))
    assert found or folder == "kernels"
    wrong = {
        f"{file} imports {module}"
        for file, module in found
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
    }
    assert not wrong, "\n".join(sorted(wrong))
