"""Interruptions at a chosen moment."""

import pytest


def interrupted_at(function, call):
    """The function, but its n-th call is interrupted."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapped


def interrupt(execute, pipeline, stops, monkeypatch):
    """Run up to each stage in turn, and stop it at the n-th call of a function.

    Args:
        execute: fixture that runs a pipeline.
        pipeline: plain data.
        stops: (owner, name of its function, n, stage) each.
        monkeypatch: fixture.
    """
    for owner, name, call, stage in stops:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted_at(getattr(owner, name), call))
            with pytest.raises(KeyboardInterrupt):
                execute(pipeline, until=stage)
