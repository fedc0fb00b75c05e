"""The worst world that a certificate still allows: a plant on the edge of the assumed bounds.

    x_{k+1} = retract(F(x_k, u), w),  |w_i| <= disturbance_i      u: the action of delay_steps ago
    x_hat_k with difference(x_k, x_hat_k) = eta,  |eta_i| <= estimate_error_i

How w and eta are chosen is the plant's `adversary`:

    uniform    independent, uniform in the box
    corner     a corner of the box, drawn anew at random times (bang-bang with random switching)
    gradient   the corner that lowers the smallest margin of the backup rollout most, found by
               finite differences through the model; eta the corner that makes that margin look
               largest to the shield
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import PlantError
from safe_rl_core.loop import ModelPlant, initial_state

Array = NDArray[np.float64]

ADVERSARIES = ("uniform", "corner", "gradient")
#: Mean number of periods between two switches of a corner.
HOLD = 15.0
_NEWTON_STEPS = 4


class AssumedPlant(ModelPlant):
    """The bundle's model with delay, disturbance and estimate error of the certificate.

    `scale` multiplies both bounds: 1 is the edge of the assumptions, above it they are broken on
    purpose.
    """

    def __init__(self, bundle: Bundle, adversary: str = "corner", scale: float = 1.0) -> None:
        if bundle.robust is None:
            raise PlantError(
                f"{bundle.name} has no certificate, so nothing is assumed that could be played; "
                "use plant model, or a robust bundle"
            )
        if adversary not in ADVERSARIES:
            raise PlantError(f"adversary must be one of {ADVERSARIES}, got '{adversary}'")
        super().__init__(bundle)
        self._adversary = adversary
        self._disturbance = scale * bundle.robust.disturbance
        self._error = scale * bundle.robust.estimate_error
        self._kernel = bundle.kernel() if adversary == "gradient" else None

    def reset(self, seed: int, x0: Array | None = None) -> Array:
        """Start at x0, or at a start of the task drawn with `seed`; the measured state."""
        self._rng = np.random.default_rng([seed, 2])
        super().reset(seed, initial_state(self._bundle, self._rng) if x0 is None else x0)
        self._corner_w, self._corner_eta = (self._sign() for _ in range(2))
        return self._measured()

    def step(self, u: Array) -> Array:
        """Hold the action of `delay_steps` periods ago, disturb, measure."""
        moved = super().step(u)
        w = self._disturbance * self._choose(moved, self._corner_w, self._disturbance)
        self._state = self._bundle.compiled("retract", moved, w)
        return self._measured()

    def _measured(self) -> Array:
        eta = self._error * self._choose(self._state, self._corner_eta, self._error)
        return displaced(self._bundle, self._state, eta)

    def _choose(self, x: Array, corner: Array, size: Array) -> Array:
        """A point of [-1, 1]^k; for eta too: x_hat = x - eta then looks better than x is."""
        if self._adversary == "uniform":
            return self._rng.uniform(-1.0, 1.0, len(size))
        if self._rng.random() < 1.0 / HOLD:
            corner[:] = self._sign()
        if self._kernel is None:
            return corner
        best = np.empty(len(size))
        for i, length in enumerate(size):
            push = np.zeros(len(size))
            push[i] = 10.0 * length
            ahead, behind = (self._margin(x, sign * push) for sign in (1.0, -1.0))
            best[i] = np.sign(behind - ahead)
        return np.where(best == 0.0, corner, best)

    def _margin(self, x: Array, e: Array) -> float:
        y = self._bundle.compiled("retract", x, e)
        return self._kernel.verify(y, self._bundle.compiled("backup_policy", y)).least

    def _sign(self) -> Array:
        return self._rng.choice([-1.0, 1.0], len(self._disturbance))


def displaced(bundle: Bundle, x: Array, eta: Array) -> Array:
    """The estimate x_hat (n,) with difference(x, x_hat) = eta (k,)."""
    estimate = bundle.compiled("retract", x, -eta)
    for _ in range(_NEWTON_STEPS):
        excess = bundle.compiled("difference", x, estimate) - eta
        estimate = bundle.compiled("retract", estimate, excess)
    return estimate
