"""What one reference run shows about how much neighbouring steps change."""

from planner.case.noun import Noun


class Telemetry(Noun):
    """Per branch, per step: relative change of the indicator and of the residual.

    Both are mean|x_t - x_{t-1}| / mean|x_{t-1}| (TeaCache, arXiv 2411.19108). `ratios` are how
    much longer the residual is than at the step before, the mean over tokens of |r_t| / |r_{t-1}|
    (MagCache, arXiv 2506.09045). Step 0 has none of them, so that each list is one shorter than
    the number of steps.
    """

    branches: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    ratios: dict[str, tuple[float, ...]] = {}
