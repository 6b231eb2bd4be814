"""SIGTERM and SIGINT: a KeyboardInterrupt at once, and a flag for where Python loses it.

What a signal handler raises inside a finalizer, Python prints and drops. So the handler also
remembers that it was called, and whoever can stop safely asks for it.
"""

import signal
from types import FrameType


class _Handler:
    """One for both signals: a library may put another in the place of one of them."""

    asked = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt


def listen() -> None:
    """Turn SIGTERM and SIGINT into KeyboardInterrupt; what is ignored (`nohup`) stays ignored."""
    handler = _Handler()
    for signum in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handler)


def raise_if_asked() -> None:
    """Raise the KeyboardInterrupt that a signal asked for, though it was lost since `listen`."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(signum)
        if isinstance(handler, _Handler) and handler.asked:
            raise KeyboardInterrupt
