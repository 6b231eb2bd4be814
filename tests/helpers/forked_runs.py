"""Runs of toy stages in forked children, so that torch is imported once for hundreds of them.

`python forked_runs.py kills|signals|finalizer|race FOLDER` does what the function of that name
says, and prints what came of it as one JSON object.
"""

import gc
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from rich.console import Console
from toy_stages import build_graph

from effllm.pipelines.cli import main
from effllm.pipelines.engine import interrupts
from effllm.pipelines.engine.display import Display
from effllm.pipelines.engine.executor import Run
from effllm.pipelines.engine.planning import Options
from effllm.pipelines.engine.store import Store, verify_payload
from effllm.pipelines.engine.tracking import NoLogger

# Audit events of Python in front of changes to the disk.
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.chmod", "os.symlink"}


def pipeline(folder):
    """Count -> scale -> collect, and a stage that stores its progress at every step."""
    steps = {"_target_": "toy_stages.Stepwise", "steps": 3, "fault": str(folder / "fault")}
    scale = {"_target_": "toy_stages.Scale", "factor": 2.0, "inputs": {"numbers": "count"}}
    return {
        "count": {"_target_": "toy_stages.Count", "size": 3},
        "double": scale,
        "steps": steps,
        "collect": {
            "_target_": "toy_stages.Collect",
            "inputs": {"numbers": ["double", "steps"]},
        },
    }


@interrupts.listening()
def execute(folder, **options):
    """Run all of it; the exit code of the command line."""
    try:
        store = Store(folder / "outputs")
        run = Run(
            instances=build_graph(pipeline(folder), store),
            store=store,
            folder=store.root / "runs" / "toy",
            labels={"paper": "toy", "scale": "smoke"},
            logger=NoLogger(),
            display=Display(Console(file=(folder / "printed").open("a"))),
            options=Options(**options),
        )
        run.execute()
    except KeyboardInterrupt:
        return 130
    return 0


def child(action):
    """Run something in a forked child; its process id."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            code = action()
        except BaseException:  # noqa: BLE001 - nobody else sees it
            traceback.print_exc()
        finally:
            os._exit(code)
    return number


def wait(number):
    """Exit code of a child; negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def at_change(place, action):
    """Do something in front of the n-th change of the disk by this process."""
    count = 0

    def watch(event, arguments):
        nonlocal count
        if event in CHANGES or (event == "open" and arguments[1] and arguments[1] != "r"):
            count += 1
            if count == place:
                action()

    sys.addaudithook(watch)


def at_line(place, action):
    """Do something in front of the n-th line of ours that this process executes."""
    count = 0

    def watch(frame, event, argument):
        nonlocal count
        if "effllm" not in frame.f_code.co_filename and "pipelines" not in frame.f_code.co_filename:
            return None
        if event == "line":
            count += 1
            if count == place:
                sys.settrace(None)
                action()
        return watch

    sys.settrace(watch)


def payloads(folder):
    """Checksums of all results; refuses what is neither complete nor absent."""
    store = Store(folder / "outputs")
    found = {}
    for place, manifest in store.manifests():
        problems = verify_payload(place, manifest)
        assert not problems, (str(place), problems)
        found[manifest["stage"]] = manifest["outputs"]
    assert len(found) == len(store.folders()), "a folder that is no result"
    return found


def kills(folder, step=4):
    """SIGKILL in front of every n-th change of the disk, each followed by a run to the end."""
    expected = reference(folder)
    moments, died = 0, True
    while died:
        moments, place = moments + 1, 1 + moments * step
        here = folder / str(place)
        here.mkdir()

        def killed(here=here, place=place):
            at_change(place, lambda: os.kill(os.getpid(), signal.SIGKILL))
            return execute(here)

        died = wait(child(killed)) == -signal.SIGKILL
        payloads(here)
        finish(here, expected)
    return {"moments": moments - 1}


def signals(folder):
    """SIGTERM and SIGINT at random lines, until the run gets through; nothing is lost or left."""
    expected = reference(folder)
    draws, codes = random.Random(0), []
    for attempt in range(24):
        here = folder / str(attempt)
        here.mkdir()
        signum = draws.choice([signal.SIGTERM, signal.SIGINT])
        place = draws.randrange(20, 2800)  # after `listening` began, before the run ends

        def interrupted(here=here, signum=signum, place=place):
            at_line(place, lambda: signal.raise_signal(signum))
            return execute(here)

        codes.append(wait(child(interrupted)))
        payloads(here)
        finish(here, expected)
    return {"codes": sorted(set(codes)), "interrupted": codes.count(130)}


def finalizer(folder):
    """SIGTERM inside a finalizer, where Python drops the exception: it ends at the next step."""
    import toy_stages

    class Litter:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def dropped():
        whole = toy_stages.Count.run

        def run(stage, ctx):
            litter = Litter()
            del litter
            gc.collect()
            return whole(stage, ctx)

        toy_stages.Count.run = run
        sys.unraisablehook = lambda unraisable: None
        return execute(folder)

    code = wait(child(dropped))
    return {"code": code, "made": sorted(payloads(folder))}


def race(folder):
    """Six equal runs at once while garbage is collected: each stage is computed by one of them."""
    expected = reference(folder)
    here = folder / "race"
    (here / "outputs").mkdir(parents=True)
    start = time.monotonic() + 0.2

    def one():
        time.sleep(max(0.0, start - time.monotonic()))
        return execute(here)

    def collector():
        sys.stdout = (here / "collected").open("a")
        return max(main(["gc", "--yes", "--outputs", str(here / "outputs")]) for _ in range(100))

    numbers = [child(collector), *(child(one) for _ in range(6))]
    codes = [wait(number) for number in numbers]
    found = payloads(here)
    assert found == expected, found
    return {
        "codes": codes,
        "steps": (here / "fault.steps").read_text().split(),
        "runs": len(list((here / "outputs").glob("runs/*/run.json"))),
    }


def reference(folder):
    """Checksums of an undisturbed run; here, so that children have all modules imported."""
    here = folder / "reference"
    here.mkdir(parents=True)
    assert execute(here) == 0
    gc.freeze()  # a stage ends with a collection, and torch has many objects
    return payloads(here)


def finish(folder, expected):
    """The same command again gives what an undisturbed run gives, and leaves nothing behind."""
    assert wait(child(lambda: execute(folder))) == 0, (folder / "printed").read_text()
    found = payloads(folder)
    assert found == expected, (folder, found)
    left = list((folder / "outputs" / "work").iterdir())
    assert not left, left


if __name__ == "__main__":
    import torch  # noqa: F401 - here, so that no child imports it

    # Jobs in the background of a shell begin with SIGINT ignored, and hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.fsync = lambda descriptor: None  # it slows this down, and nobody cuts the power here
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
