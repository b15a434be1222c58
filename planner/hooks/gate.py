"""The decision of scalar caches: changes are added up until they are too many."""

from __future__ import annotations

from collections.abc import Sequence


class Gate:
    """Skips while the changes gathered since the last computed step stay below a threshold.

    At most `most` steps are skipped in a row, where that is given.
    """

    def __init__(self, threshold: float, most: int | None = None) -> None:
        self._threshold, self._most = threshold, most
        self._gathered, self._skipped = 0.0, 0

    def skips(self, change: float, pinned: bool) -> bool:
        """Take the change at one more step; tell whether it is skipped. A pinned one never is."""
        self._gathered += change
        full = self._most is not None and self._skipped >= self._most
        # Not "at or above": a change that is not a number must compute.
        if pinned or full or not self._gathered < self._threshold:
            self._gathered, self._skipped = 0.0, 0
            return False
        self._skipped += 1
        return True

    def mask(self, changes: Sequence[float], pinned: Sequence[bool]) -> str:
        """Return what the gate does from step 0 on; `changes` are those of steps 1, 2, …"""
        steps = zip([0.0, *changes], pinned, strict=True)
        return "".join("01"[not self.skips(change, held)] for change, held in steps)


def pinned(step: int, total: int, start: float) -> bool:
    """Tell whether a step is always computed: the first, the last, and those before `start`."""
    return step == 0 or step == total - 1 or step < start * total - 1e-9
