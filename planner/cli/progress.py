"""A progress bar with the incumbent on a terminal, quiet lines elsewhere; both on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Bar:
    """Shows what a run says; implements `planner.tuning.session.Progress`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("best: {task.fields[best]}"),
            console=self._console,
            disable=not self._live,
            transient=True,
        )
        self._task: TaskID | None = None

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self._progress.console.print(escape(line), soft_wrap=True)

    def tick(self, phase: str, done: float, of: float, incumbent: str) -> None:
        """Move the bar: seconds of a search, rounds of a certificate."""
        best = escape(incumbent)
        if self._task is None:
            self._task = self._progress.add_task("", total=of, phase=phase, best=best)
        self._progress.update(
            self._task, completed=min(done, of), total=of, phase=phase, best=best
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
