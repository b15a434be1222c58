"""Goes on and does nothing, and says so."""

from planner.passes.base import Family, Fidelity, Pass, Stage

PASS = Pass(
    name="idles", family=Family.CACHING, stage=Stage.CACHE, fidelity=Fidelity.EXACT,
    source="a test", effect=lambda work, settings, telemetry: work, batch_invariant=True,
    observe=lambda settings, statistics, workload: "no step was reused",
)  # fmt: skip
