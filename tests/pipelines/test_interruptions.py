"""Runs that are killed, interrupted, and disturbed by others: each in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parents[1] / "helpers" / "forked_runs.py"


@pytest.fixture
def forked(tmp_path):
    """Call a function of the driver; what it found. It refuses lost, wrong and left-over files."""

    def call(name):
        done = subprocess.run(
            [sys.executable, str(DRIVER), name, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def test_a_kill_in_front_of_a_change_of_the_disk_loses_nothing(forked):
    assert forked("kills")["moments"] > 15


def test_a_signal_at_any_line_is_an_interruption_that_loses_nothing(forked):
    found = forked("signals")
    assert set(found["codes"]) <= {0, 130} and found["interrupted"] >= 15


def test_a_signal_that_python_drops_ends_the_run_at_the_next_stage(forked):
    assert forked("finalizer") == {"code": 130, "made": ["count"]}


def test_equal_runs_and_a_collector_do_not_disturb_each_other(forked):
    """Six runs that begin at the same moment: no stage is made twice, no input taken away."""
    found = forked("race")
    assert set(found["codes"]) == {0} and found["steps"] == ["0", "1", "2"]
    assert found["runs"] == 6  # each has a folder of its own
