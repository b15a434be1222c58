"""A declarative optimization-policy planner and autotuner for diffusion models.

`planner.load(path).apply(pipe)` puts a tuned policy on a pipeline; `planner.tune` makes one.
Names are resolved on first use: `import planner` loads no heavy library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.policy.runtime import Policy as Policy
    from planner.policy.runtime import check as check
    from planner.policy.runtime import load as load
    from planner.reporting.tuned import tune as tune
    from planner.tuning.planning import plan as plan

_HOMES = {
    "Policy": "planner.policy.runtime",
    "check": "planner.policy.runtime",
    "load": "planner.policy.runtime",
    "plan": "planner.tuning.planning",
    "tune": "planner.reporting.tuned",
    "shapes": "planner.catalog.reader",
}

__all__ = ["Policy", "check", "load", "plan", "shapes", "tune"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
