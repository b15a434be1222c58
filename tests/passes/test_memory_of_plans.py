"""The passes' effects on a catalogued model: what fits a card, and what it costs."""

import functools

from planner.case.work import Work
from planner.passes import registry
from planner.prediction.memory import Margin, peak
from planner.prediction.meta import work_of

GIB = 2**30
BARE = Margin(context=0.0, fragments=0.0)


@functools.cache
def flux() -> Work:
    """FLUX.1-dev at its defaults, as the predictor sees it."""
    return work_of("flux.1-dev")


def needs(*names: str, **settings: dict[str, object]) -> float:
    """Return the peak under these passes in GiB."""
    work = flux()
    for name in names:
        work = registry.get(name).effect(
            work, registry.settings_of(name, settings.get(name, {})), None
        )
    return peak(work, BARE).total / GIB


def test_each_pass_of_the_ladder_makes_flux_fit_a_smaller_card() -> None:
    everything = needs()
    assert 31 < everything < 36
    assert 22 < needs("model_offload") < 26
    assert 14 < needs("fp8_storage", "model_offload") < 16  # adaptive norms keep 16 bits
    assert needs("text_encoder_offload", "group_offload") < 10


def test_encoders_that_rest_do_not_lower_a_peak_that_is_theirs() -> None:
    assert needs("text_encoder_offload") > 31  # the denoiser is in memory while they encode
    assert needs("group_offload") < needs("text_encoder_offload")


def test_tiles_cut_what_decoding_holds() -> None:
    work = flux()
    tiled = registry.get("vae_tiling").effect(
        work, registry.settings_of("vae_tiling", {"tile": 512}), None
    )
    assert tiled.phases[-1].peak == work.phases[-1].peak / 4
    assert 1 < tiled.phases[-1].flops / work.phases[-1].flops < 1.8
