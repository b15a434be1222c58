"""What supports a policy: figures with their bounds, n and protocol."""

from planner.case.hit_rate import HitRate, Interval
from planner.case.noun import Noun, Scalar


class Quantity(Noun):
    """A measured value with its one-sided upper confidence bound and unit."""

    value: float
    upper: float | None = None
    unit: str


class Latency(Noun):
    """Seconds of a whole call, as a ratio to the untouched call times its reference seconds.

    `noise_spread` is the relative half-width of the middle half of the untouched calls around
    their median; `holds_while_baseline_within` the longest untouched call, in seconds, under
    which the budget is still met on this device.
    """

    baseline: Quantity
    noise_spread: float
    tuned: Quantity
    ratio: Quantity
    p90_seconds: float
    rounds: int
    holds_while_baseline_within: float | None = None


class Distance(Noun):
    """LPIPS to the untouched pipeline's images over the certification (or search) prompts."""

    mean: Quantity
    q50: float
    q90: float
    worst: float
    n: int
    noise_floor: float
    share_under_cap_lower: float | None = None
    implementation: str
    per_prompt: tuple[float, ...]


class Certificate(Noun):
    """How the verdict was reached: method, level per test, candidates, order, openings."""

    method: str
    alpha: float
    alpha_each: float
    finalists: tuple[str, ...]
    certified: str | None
    openings: int
    prompts: str
    n: int


class Evidence(Noun):
    """Everything a reader needs to believe, or doubt, a policy.

    `load_seconds` is what the pipeline takes to load, `apply_seconds` and `first_call_seconds`
    what the plan adds at start-up; after `pays_off_after_images` images it has earned them back.
    `statistics` is what passes counted in the last call, `hit_rates` what those that reuse
    forwards did over all calls; `expected_hit_rates` is what older files state in their place.
    """

    latency: Latency
    lpips: Distance | None = None
    memory_baseline: Quantity
    memory_tuned: Quantity
    load_seconds: float
    apply_seconds: float
    first_call_seconds: float
    pays_off_after_images: int | None = None
    statistics: dict[str, dict[str, Scalar]] = {}
    hit_rates: dict[str, HitRate] | None = None
    expected_hit_rates: dict[str, Interval] | None = None
    certificate: Certificate | None = None
    protocol: str
    trials: int

    @property
    def reuse(self) -> dict[str, Interval]:
        """Return by pass what share of its forwards a call should reuse."""
        stated = {name: (rate.low, rate.high) for name, rate in (self.hit_rates or {}).items()}
        return stated or dict(self.expected_hit_rates or {})


class Expected(Noun):
    """A predicted value, the interval that holds four of five such predictions, and its unit."""

    value: float
    low: float
    high: float
    unit: str


class LadderStep(Noun):
    """One rung of the ladder that a predicted plan stands on: its name, plan and seconds."""

    rung: str
    plan: str
    seconds: float


class Prediction(Noun):
    """What a predicted policy rests on; nothing of it was measured.

    `baseline` and `tuned` are seconds of a whole call, `memory_baseline` and `memory_tuned` peaks
    in bytes, of the untouched pipeline and under the plan. `rests_on` says which measurements the
    predictor knew, `quality` what is known of the images, and `ladder` what each step buys.
    `fit` is the sha256 of the predictor's constants.
    """

    baseline: Expected
    tuned: Expected
    memory_baseline: Quantity
    memory_tuned: Quantity
    rests_on: str
    quality: str
    ladder: tuple[LadderStep, ...]
    fit: str
