"""Where calls are made: puts settings on, keeps untouched calls beside them, writes all down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from planner.case.noun import Scalar
from planner.case.prompts import Prompt
from planner.errors import PlannerError, TrialFailed
from planner.tuning.bench.choose import Point
from planner.tuning.bench.journal import SEARCH, UNTOUCHED, Journal, Shot
from planner.tuning.bench.method import Learned, Method
from planner.tuning.bench.rig import Rig
from planner.tuning.bench.scale import Scale
from planner.tuning.bench.watch import Portrait, live_bytes, portrait
from planner.tuning.session import Progress


class NotHad(Exception):
    """A setting cannot be had here; the journal says why."""


class Desk:
    """Makes the calls that the journal lacks; `search` and `unseen` are the prompts."""

    def __init__(
        self, rig: Rig, journal: Journal, scale: Scale, search: Sequence[Prompt],
        unseen: Sequence[Prompt], progress: Progress,
    ) -> None:  # fmt: skip
        self.rig, self.journal, self.scale, self.progress = rig, journal, scale, progress
        self.search, self.unseen = tuple(search), tuple(unseen)
        self._since: float | None = None
        self._seconds = 0.0
        self._last = "loading"
        self._live: int | None = None

    def warm(self) -> float:
        """Make one call that counts for nothing and an untouched one; returns its seconds."""
        self.rig.untouched(self.search[0])
        return self.untouched(self.search[0]).seconds

    def untouched(self, prompt: Prompt, purpose: str = SEARCH) -> Shot:
        """Time an untouched call, and see that nothing was left on the pipeline.

        Raises `PlannerError` where it draws another image than before.
        """
        seconds, pixels = self.rig.untouched(prompt)
        if not self.rig.has_reference(prompt):
            self.rig.keep_reference(prompt, pixels)
        elif not np.array_equal(pixels, self.rig.reference(prompt)):
            raise PlannerError(
                f"the untouched pipeline draws another image after {self._last}",
                value=self._last, way_out="start over with --fresh; if it comes again, report it",
            )  # fmt: skip
        self._since, self._seconds = 0.0, seconds
        return self._keep(purpose, UNTOUCHED, None, prompt, seconds, None)

    def point(self, method: Method, value: Scalar, prompts: Sequence[Prompt]) -> Point | None:
        """Return what a setting does on some prompts of the search; None where it fails."""
        done = self.shots(SEARCH, method, value, prompts)
        return None if done is None else self.journal.point(method.name, value)

    def shots(
        self, purpose: str, method: Method, value: Scalar, prompts: Sequence[Prompt]
    ) -> list[Shot] | None:
        """Return a setting's calls on some prompts, made here where the journal lacks them.

        None where the setting cannot be had.
        """
        lacking = [p for p in prompts
                   if self.journal.find(purpose, method.name, value, p.id) is None]  # fmt: skip
        try:
            self._refuse_failed(method, value)
            while lacking:
                self._keep_beside(lacking)
                lacking = lacking[self._some(purpose, method, value, lacking) :]
        except NotHad:
            return None
        found = (self.journal.find(purpose, method.name, value, p.id) for p in prompts)
        return [shot for shot in found if shot is not None]

    def once(self, purpose: str, method: Method, value: Scalar, prompt: Prompt) -> Shot | None:
        """Make one call now, whatever the journal holds, without an untouched one before it."""
        try:
            self._some(purpose, method, value, [prompt])
        except NotHad:
            return None
        return self.journal.find(purpose, method.name, value, prompt.id)

    def portrait(self, method: Method, value: Scalar) -> Portrait | None:
        """Watch a setting, where that was not done; None where it cannot be had."""
        known = self.journal.portrait(method.name, value)
        if known is not None:
            return known[0]
        needed = self._needed()
        idle = live_bytes()
        try:
            with self._on(method, value) as arguments:
                found = portrait(self.rig, self.search[0], arguments)
        except NotHad:
            return None
        held = max(0, found.live - idle - needed)
        self.journal.keep_portrait(method.name, value, found, held)
        return found

    def learned(self, method: Method) -> Learned:
        """Return what a method's calibration learned, calibrating where that was not done.

        Raises `NotHad` where it fails.
        """
        if method.learn is None:
            return {}
        known = self.journal.learned(method.lesson)
        if known is None:
            self.progress.say(f"calibrating {method.lesson}")
            with self._failing(method, None, whole=True):
                known = method.learn(self.rig, self.search[-self.scale.learning :])
            self._last = f"calibrating {method.lesson}"
            self.journal.keep_learned(method.lesson, known)
        return known

    def close_bracket(self) -> None:
        """Make an untouched call if others came after the last one."""
        if self._since:
            self.untouched(self.search[0])

    @property
    def _due(self) -> bool:
        """Tell whether the next call should be an untouched one."""
        return self._since is None or self._since >= self.scale.every * self._seconds

    def _keep_beside(self, prompts: Sequence[Prompt]) -> None:
        """Make the untouched calls that must come before others: the references, and one if due."""
        for prompt in prompts:
            if not self.rig.has_reference(prompt):
                self.untouched(prompt)
        if self._due:
            self.untouched(self.search[0])

    def _some(
        self, purpose: str, method: Method, value: Scalar, prompts: Sequence[Prompt]
    ) -> int:
        """Make calls until an untouched one is due; returns how many."""
        done = 0
        with self._on(method, value) as arguments:
            for prompt in prompts:
                seconds, pixels = self.rig.call(prompt, arguments)
                lpips = self.rig.distance(pixels, prompt)
                self._keep(purpose, method.name, value, prompt, seconds, lpips)
                self._since, done = (self._since or 0.0) + seconds, done + 1
                if self._due:
                    break
        return done

    @contextmanager
    def _on(self, method: Method, value: Scalar) -> Iterator[Mapping[str, Any]]:
        learned = self.learned(method)
        self._last = method.setting(value)
        with self._failing(method, value), method.on(self.rig, value, learned) as arguments:
            yield arguments

    @contextmanager
    def _failing(self, method: Method, value: Scalar, *, whole: bool = False) -> Iterator[None]:
        """Write down why a setting fails: another library may raise anything."""
        try:
            yield
        except PlannerError as error:
            if not isinstance(error, TrialFailed):
                raise
            reason = error.what
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            reason = f"{type(error).__name__}: {first}"
        else:
            return
        self.progress.say(f"{method.setting(value)} cannot be had: {reason}")
        self.journal.fail(method.name, value, reason, whole=whole)
        raise NotHad(reason)

    def _refuse_failed(self, method: Method, value: Scalar) -> None:
        reason = self.journal.failure(method.name, value)
        if reason is not None:
            raise NotHad(reason)

    def _keep(
        self, purpose: str, method: str, value: Scalar, prompt: Prompt, seconds: float,
        lpips: float | None,
    ) -> Shot:  # fmt: skip
        return self.journal.keep(Shot(
            purpose=purpose, method=method, value=value, prompt=prompt.id, seconds=seconds,
            lpips=lpips, run=self.journal.run,
        ))  # fmt: skip

    def _needed(self) -> int:
        """Return the bytes that are alive in an untouched call and not between calls."""
        if self._live is None:
            idle, call = live_bytes(), self.rig.case.workload.call
            self._live = portrait(self.rig, self.search[0], call).live - idle
        return self._live
