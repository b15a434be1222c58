"""What can go wrong, each with its exit code and its way out.

    PlannerError              1  unexpected
    ├── UsageError            2  a value, name or combination that the user gave
    ├── NoPlanMeetsGoal       3  the search ended without a plan inside the limits
    ├── NotCertified          4  a plan met the goal on search prompts, none on unseen ones
    ├── PolicyDoesNotFit      5  policy and pipeline, device or library differ
    ├── InvalidFile           6  a file that cannot be read as what it says it is
    ├── Interrupted           7  stopped by the user; `--resume` goes on
    └── TrialFailed           1  one trial's failure, turned into a `Failed` outcome
"""

from collections.abc import Iterable
from difflib import get_close_matches


class PlannerError(Exception):
    """A failure that says what happened, the offending value, and what to do instead.

    `what` contains the value as the user wrote it; `way_out` is an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, *, value: object = None, way_out: str) -> None:
        super().__init__(f"{what}: {way_out}")
        self.what = what
        self.value = value
        self.way_out = way_out


class UsageError(PlannerError):
    """The user gave a value, a name or a combination that planner cannot use."""

    exit_code = 2


class NoPlanMeetsGoal(PlannerError):
    """The search ended and nothing measured lies inside the limits."""

    exit_code = 3


class NotCertified(PlannerError):
    """Plans met the goal during the search, but no bound held on unseen prompts."""

    exit_code = 4


class PolicyDoesNotFit(PlannerError):
    """A policy was made for another pipeline, device or library."""

    exit_code = 5


class InvalidFile(PlannerError):
    """A file is unreadable, truncated, edited by hand, or not what it claims to be."""

    exit_code = 6


class Interrupted(PlannerError):
    """The user stopped the run; what was measured is in the ledger."""

    exit_code = 7


class TrialFailed(PlannerError):
    """A plan could not be put on, run or measured; `stage` names where.

    `stage` is one of load, apply, calibrate, warm, render, guard, observe, timeout, crash, memory.
    """

    def __init__(self, what: str, *, stage: str, value: object = None, way_out: str) -> None:
        super().__init__(what, value=value, way_out=way_out)
        self.stage = stage


def nearest(name: str, known: Iterable[str]) -> str:
    """Answer « did you mean X? », or the list of known names where nothing is near."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.55)
    if close:
        return f"did you mean {close[0]}?"
    return "known are " + ", ".join(names) if names else "none is known"
