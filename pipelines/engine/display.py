"""One display for a run: a live stage list on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from effllm.modules.errors import EffLLMError
from effllm.pipelines.words import counted, figures, time_left

_PLAIN_INTERVAL_SECONDS = 30.0
_RECENT = 12


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the program without a word; raises what it has just caught."""
        raise


class Display:
    """Shows which stages ran, which one runs now and how far it is."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.live: Live | None = None
        self.position = self.total = 0
        self._last_plain = 0.0
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._pending: dict[str, float | None] = {}

    def begin(self, needed: Mapping[str, float | None], total: int) -> None:
        """Announce the stages that will run.

        Args:
            needed: instance -> seconds that it may take, None where they are not known.
            total: stages of the pipeline.
        """
        self.position, self.total = 0, len(needed)
        self._pending = dict(needed)
        left = f" ({time_left(needed.values())})" if needed else ""
        self.line(
            f"{counted(total, 'stage')}: {total - len(needed)} reused or not needed, "
            f"{len(needed)} to run{left}"
        )
        if self.console.is_terminal and needed:
            self.live = Live(self._view(), console=self.console, refresh_per_second=4)
            self.live.start()

    def start(self, name: str, resumed: bool) -> None:
        """A stage begins."""
        self.position += 1
        self._clear_bar()
        self._bar.add_task(name, total=None)
        self._last_plain = time.monotonic()
        self._pending.pop(name, None)
        if resumed:
            self.line(f"{self._count()} {name}: resuming where it stopped")
        self._refresh()

    def progress(self, done: int, total: int, unit: str) -> None:
        """Units done of the running stage."""
        for task in self._bar.task_ids:
            self._bar.update(task, completed=done, total=total)
        now = time.monotonic()
        if self.live is None and now - self._last_plain >= _PLAIN_INTERVAL_SECONDS:
            self._last_plain = now
            name = self._bar.tasks[0].description if self._bar.tasks else ""
            self.line(f"        {name}: {unit} {done} of {total}")

    def done(self, name: str, seconds: float, metrics: Mapping[str, Any]) -> None:
        """A stage finished."""
        self._clear_bar()
        self.line(f"{self._count()} {name:<42} {seconds:7.1f} s  {figures(metrics, 3)}")

    def fail(self, name: str, seconds: float) -> None:
        """A stage failed or was interrupted; its work folder stays."""
        self._clear_bar()
        self.line(f"{self._count()} {name:<42} {seconds:7.1f} s  stopped")

    def skip(self, name: str, why: str) -> None:
        """A stage did not have to run after all."""
        self.position += 1
        self._pending.pop(name, None)
        self.line(f"{self._count()} {name:<42}           {why}")

    def line(self, text: str) -> None:
        """A line above the live part.

        Raises:
            EffLLMError: if standard output cannot take it.
        """
        try:
            self.console.print(Text(text))
        except OSError as error:
            raise EffLLMError(f"cannot write to standard output: {error.strerror}") from error
        self._refresh()

    def end(self) -> None:
        """Leave the live part."""
        self._clear_bar()
        if self.live is not None:
            self.live.update(Text(""))
            self.live.stop()
            self.live = None

    def _count(self) -> str:
        return f"[{self.position:>{len(str(self.total))}}/{self.total}]"

    def _clear_bar(self) -> None:
        for task in list(self._bar.task_ids):
            self._bar.remove_task(task)
        self._refresh()

    def _refresh(self) -> None:
        if self.live is not None:
            self.live.update(self._view())

    def _view(self) -> Group:
        names = list(self._pending)
        waiting = (
            [Text(f"  then {time_left(self._pending.values())}", style="dim")] if names else []
        )
        waiting += [Text(f"  · {name}", style="dim") for name in names[:_RECENT]]
        if len(names) > _RECENT:
            waiting.append(Text(f"  · {len(names) - _RECENT} more", style="dim"))
        return Group(self._bar, *waiting)
