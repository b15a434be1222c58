"""The key of every trial and policy."""

from planner.case.device import Device
from planner.case.model import Model
from planner.case.noun import Noun
from planner.case.workload import Workload


class Case(Noun):
    """A model on a device under a workload: what a measurement is valid for."""

    model: Model
    device: Device
    workload: Workload
