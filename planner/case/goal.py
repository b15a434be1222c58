"""What the user wants: limits on time, memory and distance, and which side to favour."""

from typing import Literal

from planner.case.noun import Noun

PRESETS: dict[str, float] = {"near": 0.05, "balanced": 0.10, "aggressive": 0.15}
"""Mean-LPIPS caps by name; `lossless` depends on the measured noise floor."""

LOSSLESS_LPIPS = 0.02
"""The least cap that `lossless` asks for; 1.5 times the noise floor where that is more."""


class Goal(Noun):
    """Limits on one pipeline call, and what to optimize inside them.

    `budget_seconds` limits the median seconds of a whole call, `vram_bytes` the peak memory,
    `max_lpips` the mean LPIPS to the untouched pipeline's images (None: not constrained).
    `prefer` is quality (least LPIPS inside the limits) or speed (least latency inside them).
    """

    budget_seconds: float | None = None
    vram_bytes: int | None = None
    max_lpips: float | None = None
    quality: str | None = None
    prefer: Literal["quality", "speed"] = "quality"

    @property
    def by_quality(self) -> bool:
        """Tell whether the least LPIPS is looked for, rather than the least latency."""
        return self.prefer == "quality"

    @property
    def constraints(self) -> tuple[str, ...]:
        """Return the names of the limits that are set, in a fixed order."""
        limits = {
            "latency": self.budget_seconds, "memory": self.vram_bytes, "lpips": self.max_lpips,
        }  # fmt: skip
        return tuple(name for name, limit in limits.items() if limit is not None)
