"""Measuring: who runs when, and which numbers of many are told."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection while this is open."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def microseconds(call: Callable[[], object]) -> float:
    """One call."""
    start = perf_counter_ns()
    call()
    return (perf_counter_ns() - start) / 1e3


def fastest(call: Callable[[], object], repetitions: int) -> float:
    """The fastest of several calls in µs: what the work takes when nothing else happens."""
    return min(microseconds(call) for _ in range(repetitions))


def round_robin(
    contestants: Mapping[str, Callable[[int], object]],
    inputs: Sequence[int],
    repetitions: int,
    block: int,
) -> dict[str, Array]:
    """Times in µs, (repetitions, inputs) per contestant.

    Everybody works through a block of inputs before anybody starts on the next block, so that a
    disturbance of the machine falls on all of them alike. The order within a block is turned from
    one repetition to the next: the input that meets cold caches is another one each time.
    """
    times = {name: np.zeros((repetitions, len(inputs))) for name in contestants}
    with undisturbed():
        for r in range(repetitions):
            for begin in range(0, len(inputs), block):
                chosen = list(range(begin, min(begin + block, len(inputs))))
                turn = r % len(chosen)
                for name, call in contestants.items():
                    for i in chosen[turn:] + chosen[:turn]:
                        item = inputs[i]
                        start = perf_counter_ns()
                        call(item)
                        times[name][r, i] = (perf_counter_ns() - start) / 1e3
    return times


def quantiles(values: Sequence[float] | Array) -> dict[str, float]:
    """Median, p99, p99.9 and maximum."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return dict.fromkeys(("min", "p50", "p99", "p999", "max"), float("nan"))
    return {
        "min": float(array.min()),
        "p50": float(np.median(array)),
        "p99": float(np.quantile(array, 0.99)),
        "p999": float(np.quantile(array, 0.999)),
        "max": float(array.max()),
    }
