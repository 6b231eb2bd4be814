"""SIGTERM and SIGINT: a KeyboardInterrupt at once, and a flag for where Python loses it.

What a signal handler raises inside a finalizer, Python prints and drops. So the handler also
remembers that it was called, and whoever can stop safely asks for it.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Handler:
    """One for both signals: a library may put another in the place of one of them."""

    asked = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into KeyboardInterrupt; what is ignored (`nohup`) stays ignored."""
    handler = _Handler()
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    for signum, found in before.items():
        if found is not signal.SIG_IGN:
            signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, found in before.items():
            signal.signal(signum, found)


def asked() -> bool:
    """Whether a signal came while `listening`."""
    handlers = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    return any(isinstance(handler, _Handler) and handler.asked for handler in handlers)


def raise_if_asked() -> None:
    """Raise the KeyboardInterrupt that a signal asked for, if it was lost on the way."""
    if asked():
        raise KeyboardInterrupt
