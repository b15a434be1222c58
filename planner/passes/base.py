"""What a pass is: one value that states its needs, claims, costs and three or four functions.

A pass file holds, top to bottom: a docstring with the headings *What it does · When it helps ·
What it costs · When not · Source*, a frozen `Settings`, the functions, and one constant `PASS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field

from planner.case.case import Case
from planner.case.noun import Noun, Scalar
from planner.case.telemetry import Telemetry
from planner.case.work import Work
from planner.case.workload import Workload
from planner.errors import TrialFailed

if TYPE_CHECKING:
    from planner.hooks.clock import StepClock
    from planner.hooks.recorder import Forward

Artifact = dict[str, Any]
"""What a calibration learned: plain JSON numbers, lists and strings. Never code, never a pickle."""

Statistics = dict[str, Scalar]
"""What a pass observed while it was on, such as computed and reused steps."""


class Family(StrEnum):
    """The kind of technique; also the folder that its file lies in."""

    SAMPLING = "sampling"
    CACHING = "caching"
    QUANTIZATION = "quantization"
    DISTILLATION = "distillation"
    ATTENTION = "attention"
    COMPILATION = "compilation"
    MEMORY = "memory"


class Stage(IntEnum):
    """When a pass is put on; a plan is ordered by stage, then by name."""

    SWAP_WEIGHTS = 0
    FUSE_ADAPTERS = 1
    SAMPLING = 2
    QUANTIZE = 3
    ATTENTION = 4
    PARALLELISM = 5
    CACHE = 6
    GUIDANCE = 7
    OFFLOAD = 8
    COMPILE = 9


class Fidelity(StrEnum):
    """How close images stay to the untouched pipeline's.

    exact: up to rounding; approximate: same trajectory with small errors; divergent: another
    trajectory, which a reference-based distance judges harshly.
    """

    EXACT = "exact"
    APPROXIMATE = "approximate"
    DIVERGENT = "divergent"


class Settings(BaseModel):
    """The base of every pass's settings: frozen, unknown keys refused, fields made by `knob`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoSettings(Settings):
    """The settings of a pass that has nothing to choose."""


class Domain(Noun):
    """What a search may try for one setting: a range (`low`..`high`) or `choices`."""

    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    integer: bool = False
    choices: tuple[Scalar, ...] | None = None


def knob(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    log: bool = False,
    choices: tuple[Scalar, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Declare one setting: default, meaning, search domain and legal range in one place.

    `low`, `high`, `step`, `log` or `choices` are what a search tries (none of them: the setting
    is not searched); `least` and `most` bound what a person may write, by default unbounded.
    """
    domain = None
    if low is not None or choices is not None:
        integer = isinstance(default, int) and not isinstance(default, bool) and choices is None
        domain = Domain(
            low=low, high=high, step=step, log=log, integer=integer, choices=choices
        ).model_dump(exclude_defaults=True)
    extra: Any = {"domain": domain} if domain is not None else None
    return Field(default, description=meaning, ge=least, le=most, json_schema_extra=extra)


def domains(settings: type[Settings]) -> dict[str, Domain]:
    """Return the search domain of every searched field, in declaration order."""
    found = {}
    for name, info in settings.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "domain" in extra:
            found[name] = Domain.model_validate(extra["domain"])
    return found


Scope = Literal["blocks", "attention", "feed_forward"]


def scope_knob() -> Any:
    """Declare which linear layers of the blocks a pass quantizes: see `hooks.linear`."""
    return knob("blocks", "which of the blocks' linear layers", choices=get_args(Scope))


def edges_knob(high: int) -> Any:
    """Declare how many blocks at each end a pass leaves alone; a search tries up to `high`."""
    meaning = "blocks at each end of the stack that keep their precision"
    return knob(0, meaning, low=0, high=high, step=1, least=0, most=1000)


class Need(NamedTuple):
    """A condition on the case; `missing` answers None, or a sentence naming need and value."""

    missing: Callable[[Case], str | None]
    source: str


class Avoid(NamedTuple):
    """A rare clash with another pass, declared on one side only.

    `when` sees the case and both passes' settings (this one's first); None means always.
    """

    other: str
    because: str
    source: str
    verdict: Literal["breaks", "slower", "risky"] = "breaks"
    when: Callable[[Case, Settings, Settings], bool] | None = None


@dataclass
class Context:
    """What a pass sees while it is put on, besides the pipeline and its settings.

    `plan` is the whole plan as (name, settings) pairs; `artifact` what `calibrate` returned for
    this pass; `memo` survives a removal, so that putting the same thing on again is cheap
    (packed weights, compiled code); `kept` survives only a suspension of the plan, so that a plan
    that is timed beside the untouched pipeline knows what a deployed one would (conditionings of
    earlier calls); `device` is where the pipeline is to run if its weights are not there yet;
    `statistics` is this pass's own mutable counters.
    """

    case: Case
    clock: StepClock
    plan: tuple[tuple[str, Settings], ...] = ()
    artifact: Artifact | None = None
    memo: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    statistics: Statistics = field(default_factory=dict)


Undo = Callable[[], None]
"""Takes a pass off again; after it, the pipeline's output is bit-equal to before."""

Masks = Sequence[Mapping[str, str]]
"""For each recorded call, by branch: one character a step, 1 computed, 0 skipped."""


Neighbours = Sequence[Mapping[str, Scalar]]


class Reference(Protocol):
    """Reference calls on the calibration prompts, with what is on the pipeline now."""

    def render(self) -> None:
        """Run them."""

    def telemetry(self) -> Telemetry:
        """Return what they show to the passes' probes; they are run once for all who ask."""


def nothing(pipeline: Any, settings: Any, context: Context) -> Undo:
    """Apply of passes that act through the pipeline call alone."""
    del pipeline, settings, context
    return lambda: None


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A technique as a value; see the module docstring and the README's section on passes.

    owns: resources it claims exclusively, such as "denoiser.step_reuse".
    effect: how it changes the operations (Work, settings, telemetry or None) -> Work.
    call: keyword arguments of the pipeline call that it sets (settings, workload).
    calibrate: (pipeline, settings, context, reference) -> Artifact, run by the tuner with all
        earlier passes on; never at deployment.
    probe: what reference runs record under the pass's name: one forward -> a tensor.
    masks: (settings, telemetry) -> for each recorded call the steps of each branch that a cache
        would compute (1) and skip (0).
    needed: (artifact, settings) -> the part of it that a policy with these settings keeps; raises
        `TrialFailed` where the artifact, which was learned for other settings, lacks it.
    apply: puts it on, returns the undo; reversible=False where no honest undo exists.
    observe: (settings, statistics, workload) -> None or a sentence why it was inert or wrong.
    around: settings -> whether it decides around the denoiser's forward, which may be captured.
    narrow: search domains for this case, replacing the declared ones by name.
    unfit: (case, settings) -> None or a sentence why these settings cannot be had there; the
        case's call is the plan's.
    neighbours: (settings, artifact, telemetry) -> settings a small change away, the most
        promising first, for a local search.
    seeds: settings that experts start from, tried first.
    batch_invariant: whether an image is independent of its neighbours in the batch.
    imports: libraries that must be importable for apply, as PEP 508 requirements.
    """

    name: str
    family: Family
    stage: Stage
    fidelity: Fidelity
    source: str
    settings: type[Settings] = NoSettings
    owns: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    avoids: tuple[Avoid, ...] = ()
    imports: tuple[str, ...] = ()
    effect: Callable[[Work, Any, Telemetry | None], Work]
    call: Callable[[Any, Workload], dict[str, Scalar]] | None = None
    calibrate: Callable[[Any, Any, Context, Reference], Artifact] | None = None
    probe: Callable[[Forward], Any] | None = None
    masks: Callable[[Any, Telemetry], Masks] | None = None
    needed: Callable[[Artifact, Any], Artifact] | None = None
    apply: Callable[[Any, Any, Context], Undo] = nothing
    reversible: bool = True
    observe: Callable[[Any, Statistics, Workload], str | None] | None = None
    narrow: Callable[[Case, Telemetry | None], dict[str, Domain]] | None = None
    unfit: Callable[[Case, Any], str | None] | None = None
    neighbours: Callable[[Any, Artifact, Telemetry | None], Neighbours] | None = None
    around: Callable[[Any], bool] | None = None
    seeds: tuple[Mapping[str, Scalar], ...] = ({},)
    batch_invariant: bool
    doc: str = ""

    def missing(self, case: Case) -> tuple[str, ...]:
        """Return one sentence for every need that the case does not fulfil."""
        answers = (need.missing(case) for need in self.needs)
        return tuple(answer for answer in answers if answer)

    def told(self, case: Case, telemetry: Telemetry) -> dict[str, Domain]:
        """Return the ranges that telemetry, and nothing else, gives to numeric settings."""
        if self.narrow is None:
            return {}
        blind = self.narrow(case, None)
        return {name: domain for name, domain in self.narrow(case, telemetry).items()
                if name not in blind and domain.choices is None}  # fmt: skip

    def serves(self, artifact: Artifact, settings: Any) -> bool:
        """Tell whether an artifact, perhaps learned for other settings, holds what these need."""
        if self.needed is None:
            return bool(artifact)
        try:
            self.needed(artifact, settings)
        except TrialFailed:
            return False
        return True

    def learns(self, settings: Any) -> bool:
        """Tell whether settings need what a calibration finds: a mask that is given does not."""
        return self.calibrate is not None and not self.serves({}, settings)
