"""How fast searches are on this machine, so that a time can be kept.  (Chapter 8)"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Pace(NamedTuple):
    """Seconds: before the first step of a search, and of a step."""

    start: float
    step: float


def measure_pace(search: Callable[[int], Any], settle: Callable[[Any], Any]) -> Pace:
    """The pace of `search(steps)`; it and `settle(output)` are compiled on the way.

    The search runs once to be compiled, and then with few steps and with fewer.
    """
    search(1)
    few, output = _seconds(lambda: search(1))
    more = _seconds(lambda: search(3))[0]
    settle(output)
    step = max((more - few) / 2, 0.1 * few)
    return Pace(max(few - step, 0.0), step)


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long something takes, and what it gives."""
    began = time.perf_counter()
    result = jax.block_until_ready(work())
    return time.perf_counter() - began, result
