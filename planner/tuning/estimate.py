"""How long a study takes, from counts: what is reserved, and how many trials fit."""

from __future__ import annotations

from planner.tuning.request import TuneRequest
from planner.tuning.score import AIM

_PAGE_SECONDS = 20.0
_LEFT_OUT = 3
"""Passes whose leave-one-out is provided for: two untouched calls and four of the rest each."""


def reserve(request: TuneRequest, reference: float, batch: int) -> float:
    """Return the seconds kept for the certificate and what follows it.

    A third more than one certificate takes, for a first finalist that is stopped early; then what
    each pass bought, the policy and the page.
    """
    tuned = min(request.goal.budget_seconds or reference, reference) * AIM
    extras = _PAGE_SECONDS + _LEFT_OUT * (2 * reference + 4 * tuned)
    if not request.certify:
        return extras
    return 1.3 * len(request.split.certify) / batch * (reference + tuned) + extras


def estimate(request: TuneRequest, reference: float, batch: int) -> dict[str, float]:
    """Return estimated seconds of baseline and certificate, and how many trials fit between."""
    tuned = min(request.goal.budget_seconds or reference, reference) * AIM
    calls = len(request.split.search) / batch
    baseline = (2 * calls + 2) * reference  # two calls warm it
    certificate = len(request.split.certify) / batch * (reference + tuned)
    certificate *= request.certify
    trial = 2 * reference + (calls + 1) * tuned
    left = max(0.0, request.search_seconds - baseline - reserve(request, reference, batch))
    return {
        "untouched_call_seconds": round(reference, 3), "baseline_seconds": round(baseline, 1),
        "certificate_seconds": round(certificate, 1), "trial_seconds": round(trial, 1),
        "trials_that_fit": round(left / trial), "search_seconds": request.search_seconds,
    }  # fmt: skip
