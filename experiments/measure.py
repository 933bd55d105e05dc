"""Statistics with their intervals, paired comparisons, clocks, and costs of compiled programs."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap

RESAMPLES = 2000
# instructions without work at run time
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}


def interval(
    values: Any, statistic: Callable[..., Any] = np.mean, *, seed: int = 0, count: int = RESAMPLES
) -> dict[str, float]:
    """A statistic of one sequence, or of several of equal length (a tuple), with its 95 %
    percentile bootstrap interval (Efron 1979).  Rows are drawn together, so that pairs stay pairs.
    """
    columns = [np.asarray(v, float) for v in (values if isinstance(values, tuple) else (values,))]
    n = len(columns[0])
    value = float(statistic(*columns)) if n else float("nan")
    if n < 2:
        return {"value": value, "low": value, "high": value, "n": n}
    settings = {"n_resamples": count, "method": "percentile", "rng": seed}
    with warnings.catch_warnings():  # a statistic that is undefined for some samples
        warnings.simplefilter("ignore", DegenerateDataWarning)
        drawn = bootstrap(columns, statistic, paired=True, **settings).bootstrap_distribution
    finite = drawn[np.isfinite(drawn)]
    low, high = np.quantile(finite, (0.025, 0.975)) if len(finite) else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high), "n": n}


def difference(a: Any, b: Any, *, seed: int = 0) -> dict[str, float]:
    """Mean of a - b over pairs, with its interval."""
    return interval(np.asarray(a, float) - np.asarray(b, float), seed=seed)


def paired(a: Sequence[bool], b: Sequence[bool]) -> dict[str, Any]:
    """Two systems on the same problems: the difference of their shares, on how many each is
    better, and the probability of so uneven a count by chance (sign test).
    """
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    better, worse = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return {"difference": difference(first, second), "better": better, "worse": worse, "p": p}


def times(call: Callable[[], Any], *, repeats: int = 5) -> list[float]:
    """Seconds of each of several calls of something that has been compiled already."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return seconds


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, each compiled before, taken in turns."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name] += times(call, repeats=1)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The median of each with its interval."""
    return {name: interval(several, np.median) for name, several in seconds.items()}


def matmul_peak(size: int = 1024, *, repeats: int = 7) -> float:
    """Operations a second of a large float32 matrix product, the best of `repeats`."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda u: u @ u)
    jax.block_until_ready(product(a))
    return 2 * size**3 / min(times(lambda: product(a), repeats=repeats))


def kernels(program: str) -> dict[str, int]:
    """Instructions of an optimised program that run outside every loop, and inside loops."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = head.group(2)
            entry = name if head.group(1) else entry
            bodies[name] = []
        elif line.startswith("  ") and " = " in line:
            bodies[name].append(line)

    def count(computation: str) -> tuple[int, int]:
        outside = inside = 0
        for line in bodies[computation]:
            match = re.search(r"[\]})] ([a-z][\w\-]*)\(", line)
            operation = match.group(1) if match else ""
            called = dict(re.findall(r"(body|condition|to_apply)=%?([\w.\-]+)", line))
            if operation == "while":
                inside += sum(count(called["body"]) + count(called["condition"]))
            elif operation == "call":
                more = count(called["to_apply"])
                outside, inside = outside + more[0], inside + more[1]
            else:
                outside += operation not in FREE
        return outside, inside

    return dict(zip(("program", "loop"), count(entry), strict=True))


def compiled(call: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, Any]]:
    """The compiled program of a call, and what it cost and needs."""
    began = time.perf_counter()
    program = jax.jit(call).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None, "this backend does not report its program"
    needs = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return program, {"compile_seconds": seconds, "bytes": needs, "kernels": kernels(text)}
