"""Who goes first, and what a clock counts."""

import time

import torch

from effllm.modules.timing import seconds_of, taking_turns


def test_over_as_many_rounds_as_names_each_stands_at_each_place_once():
    rounds = [taking_turns(["a", "b", "c"], number) for number in range(3)]
    assert all(sorted(place) == ["a", "b", "c"] for place in [*rounds, *zip(*rounds, strict=True)])
    assert taking_turns(["a", "b", "c"], 4) == rounds[1]
    assert taking_turns(["alone"], 7) == ["alone"]


def test_the_work_is_done_once_and_its_time_counted():
    done = []

    def work():
        time.sleep(0.02)
        done.append(1)

    assert seconds_of(work, torch.device("cpu")) >= 0.02
    assert done == [1]
