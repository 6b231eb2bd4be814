"""Interruptions at a chosen moment."""


def interrupted_at(function, call):
    """The function, but its n-th call is interrupted."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapped
