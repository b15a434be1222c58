"""What a comparison has measured: a ledger with one line a finished call, and its index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from planner.case.noun import Noun, Scalar
from planner.errors import UsageError
from planner.trials.ledger import Ledger
from planner.tuning.bench.choose import Point
from planner.tuning.bench.watch import Portrait
from planner.tuning.session import differences

UNTOUCHED = "untouched"
SEARCH, HEAT, CERTIFY, EQUAL = "search", "heat", "certify", "equal"


class Shot(Noun):
    """One timed call: what for, of which setting, on which prompt, and in which run it was made."""

    purpose: str
    method: str
    value: Scalar = None
    prompt: str
    seconds: float
    lpips: float | None = None
    run: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return what makes a second such call needless."""
        return _key(self.purpose, self.method, self.value, self.prompt)


class Journal:
    """The shots, calibrations, portraits and failures of one comparison; all from its ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._shots = [Shot.model_validate(body) for body in ledger.bodies("sample")]
        self._places = {shot.key: place for place, shot in enumerate(self._shots)}
        self.run = 1 + max((shot.run for shot in self._shots), default=0)

    @classmethod
    def begin(
        cls, path: Path, identity: dict[str, Any], *, resume: bool, fresh: bool
    ) -> Journal:
        """Open the ledger: a new one, the same one again (`resume`), or afresh beside the old.

        Raises `UsageError` where one lies there and neither was asked for, or where it is of
        another comparison; each difference is named.
        """
        if not (resume and path.exists()):
            return cls(Ledger.create(path, identity, fresh=fresh))
        ledger = Ledger.open(path)
        found = differences(identity, ledger.study)
        if found:
            ledger.close()
            raise UsageError(
                f"the comparison in {path} is another one: " + "; ".join(found[:6]),
                value=str(path), way_out="start over with --fresh",
            )  # fmt: skip
        return cls(ledger)

    def close(self) -> None:
        """Let another process go on with it."""
        self._ledger.close()

    def keep(self, shot: Shot) -> Shot:
        """Write one finished call."""
        self._ledger.append("sample", shot.model_dump(mode="json"))
        self._places[shot.key] = len(self._shots)
        self._shots.append(shot)
        return shot

    def find(self, purpose: str, method: str, value: Scalar, prompt: str) -> Shot | None:
        """Return a finished call, None for one of an earlier run that a busy machine made."""
        place = self._places.get(_key(purpose, method, value, prompt))
        if place is None or self._was_busy(place):
            return None
        return self._shots[place]

    def _was_busy(self, place: int) -> bool:
        """Tell whether untouched calls beside a call of an earlier run took unusually long.

        Such a call's share says more of the other work than of its method. Calls of this run
        stand: what is busy now may be so for long.
        """
        busy = self._ledger.study.get("scale", {}).get("busy")
        if self._shots[place].run == self.run or busy is None:
            return False
        beside = [self._beside(place, way) for way in (-1, 1)]
        usual = median(self.untouched_seconds())
        return any(seconds is not None and seconds > busy * usual for seconds in beside)

    def shots(self, purpose: str, method: str, value: Scalar) -> list[Shot]:
        """Return a setting's calls for a purpose, the latest of each prompt: see `find`."""
        begin = _key(purpose, method, value, "")[:3]
        return [self._shots[place] for key, place in self._places.items()
                if key[:3] == begin and not self._was_busy(place)]  # fmt: skip

    def values(self, purpose: str, method: str) -> list[Scalar]:
        """Return the settings of a method that were called for a purpose."""
        mine = (s for s in self._shots if s.purpose == purpose and s.method == method)
        return list(dict.fromkeys(shot.value for shot in mine))

    def share(self, shot: Shot) -> float:
        """Return a call's seconds over those of the untouched calls beside it, in the same run."""
        beside = [self._beside(self._places[shot.key], way) for way in (-1, 1)]
        return shot.seconds / fmean(seconds for seconds in beside if seconds is not None)

    def _beside(self, place: int, way: int) -> float | None:
        run = self._shots[place].run
        place += way
        while 0 <= place < len(self._shots) and self._shots[place].run == run:
            if self._shots[place].method == UNTOUCHED:
                return self._shots[place].seconds
            place += way
        return None

    def point(self, method: str, value: Scalar) -> Point | None:
        """Return what the search's calls of a setting say; None where there is none.

        Its share is that of the heats, where it was in one.
        """
        shots = self.shots(SEARCH, method, value)
        if not shots or self.failure(method, value):
            return None
        timed = self.shots(HEAT, method, value) or shots
        return Point(value=value, lpips=fmean(shot.lpips or 0.0 for shot in shots),
                     share=median(map(self.share, timed)), n=len(shots))  # fmt: skip

    def points(self, method: str) -> list[Point]:
        """Return every setting of a method that the search looked at."""
        found = (self.point(method, value) for value in self.values(SEARCH, method))
        return [one for one in found if one is not None]

    @property
    def seconds(self) -> float:
        """Return what all timed calls took, those of broken-off runs included."""
        return sum(shot.seconds for shot in self._shots)

    def untouched_seconds(self) -> list[float]:
        """Return the seconds of every untouched call."""
        return [shot.seconds for shot in self._shots if shot.method == UNTOUCHED]

    def fail(self, method: str, value: Scalar, reason: str, *, whole: bool = False) -> None:
        """Write why a setting, or the `whole` method, cannot be had here."""
        body = {"method": method, "value": value, "reason": reason, "whole": whole}
        self._ledger.append("skipped", body)

    def failure(self, method: str, value: Scalar = None, *, whole: bool = False) -> str | None:
        """Return why a setting, or the `whole` method, cannot be had; None where it can."""
        for body in self._ledger.bodies("skipped"):
            mine = body["method"] == method
            if mine and (body["whole"] or (not whole and body["value"] == value)):
                return str(body["reason"])
        return None

    def learned(self, lesson: str) -> dict[str, Any] | None:
        """Return what a calibration returned."""
        found = [b["artifact"] for b in self._ledger.bodies("artifact") if b["key"] == lesson]
        return found[-1] if found else None

    def keep_learned(self, lesson: str, artifact: dict[str, Any]) -> None:
        """Write what a calibration returned."""
        self._ledger.append("artifact", {"key": lesson, "artifact": artifact})

    def portrait(self, method: str, value: Scalar) -> tuple[Portrait, int] | None:
        """Return a watched call and the most bytes that the method held in it."""
        for body in self._ledger.bodies("trial"):
            if (body["method"], body["value"]) == (method, value) and "most_held" in body:
                return Portrait.model_validate(body["portrait"]), int(body["most_held"])
        return None

    def keep_portrait(self, method: str, value: Scalar, found: Portrait, held: int) -> None:
        """Write a watched call."""
        seen = found.model_dump()
        body = {"method": method, "value": value, "portrait": seen, "most_held": held}
        self._ledger.append("trial", body)

    def chosen(self, stage: str, level: float, choose: Callable[[], list[Any]]) -> list[Any]:
        """Return what goes into a stage, as it was chosen first: later calls move what is best."""
        for body in self._ledger.bodies("finalists"):
            if (body["stage"], body["level"]) == (stage, level):
                return list(body["names"])
        found = choose()
        self.note("finalists", {"stage": stage, "level": level, "names": found})
        return found

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        """Return the bodies of all records of a kind."""
        return self._ledger.bodies(kind)

    def note(self, kind: str, body: dict[str, Any]) -> None:
        """Write a conclusion, once: an equal one that is there already is not written again."""
        if body not in self._ledger.bodies(kind):
            self._ledger.append(kind, body)


def _key(purpose: str, method: str, value: Scalar, prompt: str) -> tuple[str, str, str, str]:
    return purpose, method, json.dumps(value), prompt

