"""Starts: the way to where the first own action acts, and whether the shield may begin there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.kernel.batch import BatchKernel

Array = NDArray[np.float64]


def start_path(kernel: BatchKernel, x: Array, stop: Array, delay_steps: int) -> Array:
    """x (B, n) and where the stop actions, sent before the first own action, lead: (d+1, B, n)."""
    path, action = [x], np.tile(stop, (len(x), 1))
    for _ in range(delay_steps):
        path.append(kernel.evaluate("step", path[-1], action))
    return np.stack(path)


def startable(kernel: BatchKernel, path: Array) -> NDArray[np.bool_]:
    """Where every state of the path keeps the margins and a way out follows it: (B,)."""
    good = kernel.way_out(path[-1]) >= 0.0
    for x in path:  # a plan from x says nothing of x itself
        good &= (kernel.evaluate("safe_set", x) >= kernel.required).all(axis=-1)
    return good
