"""Which branch is being computed now, state kept per branch, and what was computed or reused.

Under sequential guidance a pipeline calls its denoiser once per branch and names the branch with
`cache_context` ("cond", "uncond"). Caches that mix the branches' states are wrong (diffusers'
TeaCache and EasyCache users hit this with parity counters), so state is keyed by that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from planner.case.noun import Scalar
from planner.hooks.clock import StepClock

SINGLE = "single"
"""The branch's name where a pipeline names none."""

S = TypeVar("S")


class Hook:
    """A diffusers model hook that knows its branch; override `pre_forward`, `post_forward` or
    define `new_forward`.

    Duck-typed, so that no module has to import diffusers to define one. `contexts` is filled by
    the denoiser's `cache_context`, which looks for attributes of that type in stateful hooks.
    """

    _is_stateful = True

    def __init__(self) -> None:
        from diffusers.hooks.hooks import StateManager

        self.contexts = StateManager(dict)
        self.fn_ref: Any = None

    @property
    def branch(self) -> str:
        """Return the name given to `cache_context` around the running forward."""
        context = self.contexts._context
        return SINGLE if context is None else str(context.name)

    def initialize_hook(self, module: Any) -> Any:
        """Do nothing when the hook is put on."""
        return module

    def deinitalize_hook(self, module: Any) -> Any:
        """Do nothing when the hook is taken off; the name is spelled as in diffusers."""
        return module

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return the forward's arguments unchanged."""
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        """Return the forward's output unchanged."""
        return output

    def reset_state(self, module: Any) -> Any:
        """Do nothing: the step clock resets state, not the pipeline's end-of-call clean-up."""
        return module


def attach(denoiser: Any, module: Any, hook: Hook, name: str) -> Callable[[], None]:
    """Put a hook on a module inside `denoiser` (or on itself); returns the undo.

    The undo leaves no trace: diffusers would leave an instance attribute `forward` behind.
    """
    from diffusers.hooks import HookRegistry

    registry = HookRegistry.check_if_exists_or_initialize(module)
    root = HookRegistry.check_if_exists_or_initialize(denoiser)
    registry.register_hook(hook, name)
    root.invalidate_child_registries_cache()

    def detach() -> None:
        registry.remove_hook(name, recurse=False)
        drop_empty_registry(module)
        root.invalidate_child_registries_cache()

    return detach


def drop_empty_registry(module: Any) -> None:
    """Remove what diffusers' hook registry leaves on a module once its last hook is gone."""
    registry = vars(module).get("_diffusers_hook")
    if registry is None or registry.hooks:
        return
    del module._diffusers_hook
    forward = vars(module).get("forward")
    if forward is not None and getattr(forward, "__func__", None) is type(module).forward:
        del module.forward


class Order:
    """Tells the calls of one step apart by their order, where a pipeline names no branches.

    The first is "single", the second "single_2". Guidance that is left out at some steps leaves
    out a later call: diffusers' pipelines call the conditional branch first.
    """

    def __init__(self, clock: StepClock) -> None:
        self._clock, self._at, self._calls = clock, -1, 0

    def restart(self) -> None:
        """Begin another pipeline call."""
        self._at = -1

    def name(self) -> str:
        """Return the name of the call that is beginning."""
        if self._at != self._clock.step:
            self._at, self._calls = self._clock.step, 0
        self._calls += 1
        return SINGLE if self._calls == 1 else f"{SINGLE}_{self._calls}"

    def branch(self, hook: Hook) -> str:
        """Return the branch of the call that is beginning, by the pipeline's name or by order."""
        return self.name() if hook.branch == SINGLE else hook.branch


class PerBranch(Generic[S]):
    """State by branch; one that resumes after skipped steps starts from a fresh state.

    So does one whose latents have another form than before, where its callers say which.
    """

    def __init__(self, make: Callable[[], S], clock: StepClock) -> None:
        self._make = make
        self._clock = clock
        self._states: dict[str, S] = {}
        self._seen: dict[str, int] = {}
        self._forms: dict[str, Any] = {}

    def __getitem__(self, branch: str) -> S:
        """Return the branch's state at the step being computed."""
        step = self._clock.step
        last = self._seen.get(branch)
        if last is None or not last <= step <= last + 1:
            self._states[branch] = self._make()
        self._seen[branch] = step
        return self._states[branch]

    def of(self, branch: str, form: Any) -> S:
        """Return the state of a branch that is called with latents of this form."""
        if self._forms.get(branch, form) != form:  # nothing that is kept will fit
            self._seen.pop(branch, None)
        self._forms[branch] = form
        return self[branch]

    def clear(self) -> None:
        """Forget every branch."""
        self._states.clear()
        self._seen.clear()
        self._forms.clear()


class Tally:
    """Counts computed and reused forwards of one pipeline call into a pass's statistics.

    Writes `computed` and `reused`, both also per branch, `hit_rate`, and per branch a `mask` with
    one character a step: 1 computed, 0 reused, - not called. The figures of a call stay readable
    after it, until the next call counts its first forward.
    """

    def __init__(self, statistics: dict[str, Scalar], clock: StepClock) -> None:
        self._statistics: dict[str, Any] = statistics
        self._clock = clock
        self._names: dict[str, tuple[str, str, str]] = {}

    def restart(self) -> None:
        """Begin anew at the next forward; register with the clock's `on_reset`."""
        self._names = {}

    def add(self, branch: str, computed: bool) -> None:
        """Count one forward of a branch at the clock's step."""
        done, reused, mask = self._names.get(branch) or self._begin(branch)
        counts = self._statistics
        counts["computed" if computed else "reused"] += 1
        counts[done if computed else reused] += 1
        counts["hit_rate"] = counts["reused"] / (counts["computed"] + counts["reused"])
        counts[mask] = counts[mask].ljust(self._clock.step, "-") + ("1" if computed else "0")

    def _begin(self, branch: str) -> tuple[str, str, str]:
        if not self._names:
            self._statistics.clear()
            self._statistics.update({"computed": 0, "reused": 0, "hit_rate": 0.0})
        names = (f"computed_{branch}", f"reused_{branch}", f"mask_{branch}")
        self._statistics.update(zip(names, (0, 0, ""), strict=True))
        self._names[branch] = names
        return names
