"""What a study's predictions stand on: the model's exact work, and how fast this device is.

The speeds are this device's calibration where one is kept, else its catalogue card; a CPU without
one is calibrated on the spot, which takes seconds. A model whose work cannot be counted, or a
device that nobody measured, has no footing: the study says so and goes on without predictions.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from planner.case.case import Case
from planner.case.work import Work
from planner.case.workload import Workload
from planner.catalog.devices import card_of
from planner.catalog.reader import entry, known
from planner.errors import PlannerError, UsageError
from planner.measure import calibration
from planner.prediction.roofline import Speeds, Table, price
from planner.prediction.speeds import FITTED, fit_of, rests_on, speeds
from planner.run.devices.base import Backend, backend
from planner.run.pipeline import PipelineSource
from planner.tuning.session import Progress


class Footing(NamedTuple):
    """Untouched work, the device's speeds, and the error to expect before anything is measured.

    `compiled` are the speeds under a compiler; `spread` is the factor that holds four of five
    predictions.
    """

    work: Work
    eager: Speeds
    compiled: Speeds
    spread: float


def footing(source: PipelineSource, case: Case, root: Path, progress: Progress) -> Footing | None:
    """Return what predictions can stand on, None where there is nothing; one line says which.

    `root` is the .planner folder that keeps calibrations.
    """
    try:
        device = _Device.here(backend(source.device), root)
        begun = time.monotonic()
        work = _work(source.model, case.workload)
        price(Table.of([work]), [device.eager])  # refuses a number format without a unit here
    except (PlannerError, OSError) as error:
        progress.say(f"no predictions: {error}")
        return None
    counted = time.monotonic() - begun
    progress.say(f"predictions rest on {device.said} and on the model's work, counted in "
                 f"{counted:.1f} s")  # fmt: skip
    return Footing(work, device.eager, device.compiled, device.spread)


class _Device(NamedTuple):
    """How fast a device is, from where that is known, in words."""

    eager: Speeds
    compiled: Speeds
    spread: float
    said: str

    @staticmethod
    def here(found: Backend, root: Path) -> _Device:
        """Return the kept calibration, else the card, else a CPU's fresh calibration."""
        device, fit = found.describe(), fit_of(FITTED)
        kept, card = calibration.stored(device, root), card_of(device)
        if kept is None and card is not None:
            eager, compiled = (speeds(card, fit.constants, kind) for kind in ("eager", "compiled"))
            spread = fit.spread[rests_on(card, fit.constants)]
            return _Device(eager, compiled, spread, f"what is catalogued of {card.name}")
        begun = time.monotonic()
        if kept is None and device.kind != "cpu":
            what = f"{device.name} is neither calibrated nor catalogued"
            raise UsageError(what, value=device.name, way_out="run planner doctor --calibrate")
        said = "this device's calibration"
        if kept is None:
            kept = calibration.calibrate(found)
            calibration.store(kept, root)
            said += f", measured in {time.monotonic() - begun:.1f} s,"
        # Nothing was fitted on this device, so that its error is that of an unknown one.
        return _Device(kept.speeds, kept.speeds, fit.spread["datasheet"], said)


def _work(model: str, workload: Workload) -> Work:
    """Count the reference call of a catalogued model, by id or Hub name, or of a folder.

    torch and diffusers are imported here, since a study without predictions needs neither.
    """
    from planner.prediction.folder import sizes_of
    from planner.prediction.meta import entry_for, work_of

    named = next((one for one in known() if entry(one).repository == model), model)
    if entry_for(named).defaults is None:
        raise UsageError(f"{named} has no default call to count", value=named,
                         way_out="give its catalogue entry defaults")  # fmt: skip
    return work_of(named, workload.dtype, **sizes_of(workload))
