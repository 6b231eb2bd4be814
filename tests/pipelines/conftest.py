import gc
import io

import pytest
import torch  # noqa: F401 - before the next line
from rich.console import Console
from toy_stages import build_graph

from effllm.pipelines.engine.display import Display
from effllm.pipelines.engine.executor import Run
from effllm.pipelines.engine.planning import Options
from effllm.pipelines.engine.store import Store
from effllm.pipelines.engine.tracking import NoLogger

gc.freeze()  # every stage ends with a collection, and torch has many objects that stay


@pytest.fixture
def pipeline():
    """A small graph: count -> double, triple -> collect."""
    return {
        "count": {"_target_": "toy_stages.Count", "size": 3},
        "double": {"_target_": "toy_stages.Scale", "factor": 2.0, "inputs": {"numbers": "count"}},
        "triple": {"_target_": "toy_stages.Scale", "factor": 3.0, "inputs": {"numbers": "count"}},
        "collect": {"_target_": "toy_stages.Collect", "inputs": {"numbers": ["double", "triple"]}},
    }


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "outputs")


@pytest.fixture
def execute(store):
    """Run a pipeline; returns (outcomes by status, the run, what was printed)."""

    def run(pipeline, *, store=store, logger=None, **options):
        printed = io.StringIO()
        one = Run(
            instances=build_graph(pipeline, store),
            store=store,
            folder=store.root / "runs" / "toy",
            labels={"paper": "toy", "scale": "smoke"},
            logger=logger or NoLogger(),
            display=Display(Console(file=printed, width=200)),
            options=Options(**options),
        )
        try:
            outcomes = one.execute()
        finally:
            run.printed = printed.getvalue()
            run.last = one
        return {name: outcome.status for name, outcome in outcomes.items()}

    return run
