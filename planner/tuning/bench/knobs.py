"""The axis along which a method is tried: the values of its one main knob."""

from __future__ import annotations

import math

from planner.case.noun import Scalar
from planner.passes.base import Domain


def grid(domain: Domain, count: int) -> list[Scalar]:
    """Return at most `count` different values, evenly over the domain (evenly in its logarithm)."""
    every = listed(domain)
    if every is None:
        ends = _scaled(domain, domain.low or 0.0), _scaled(domain, domain.high or 0.0)
        steps = max(1, count - 1)
        width = (ends[1] - ends[0]) / steps
        found: list[Scalar] = [_value(domain, ends[0] + width * i) for i in range(count)]
    elif len(every) > count:
        last = len(every) - 1
        found = [every[round(i * last / max(1, count - 1))] for i in range(count)]
    else:
        found = every
    return list(dict.fromkeys(found))


def listed(domain: Domain) -> list[Scalar] | None:
    """Return every value of a domain that has only so many, None for a continuous one."""
    if domain.choices is not None:
        return list(domain.choices)
    if not (domain.integer or domain.step):
        return None
    low, step = domain.low or 0.0, domain.step or 1.0
    count = math.floor(((domain.high or 0.0) - low) / step + 1e-8) + 1
    points = [round(low + i * step, 12) for i in range(count)]
    return [int(point) for point in points] if domain.integer else list(points)


def place(domain: Domain, value: Scalar) -> float:
    """Return where a value lies on the axis; a value off a list is where the nearest one is."""
    every = listed(domain)
    if every is None:
        return _scaled(domain, _number(value))
    if value in every:
        return float(every.index(value))
    number = _number(value)
    return float(min(range(len(every)), key=lambda i: abs(_number(every[i]) - number)))


def nearest(domain: Domain, value: Scalar) -> Scalar:
    """Return the value of a domain that is nearest to another one."""
    every = listed(domain)
    if every is not None:
        return every[round(place(domain, value))]
    number = _number(value)
    return min(max(number, domain.low or number), domain.high or number)


def between(domain: Domain, a: Scalar, b: Scalar) -> Scalar:
    """Return the value in the middle of two; one of the two where nothing lies between."""
    every = listed(domain)
    middle = (place(domain, a) + place(domain, b)) / 2
    return _value(domain, middle) if every is None else every[math.floor(middle)]


def _number(value: Scalar) -> float:
    assert isinstance(value, (int, float)), value
    return float(value)


def _scaled(domain: Domain, value: float) -> float:
    return math.log(value) if domain.log else value


def _value(domain: Domain, at: float) -> float:
    """Return the value at a place, with the digits that anybody would write."""
    return float(f"{math.exp(at) if domain.log else at:.3g}")
