"""The closed loop without ROS: plant, proposer, shield, log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import PlantError
from safe_rl_core.kernel.robust import RobustKernel
from safe_rl_core.record import FlightLog, FlightRecorder
from safe_rl_core.shield_base import ShieldBase

Array = NDArray[np.float64]

#: What the plan of a drawn start has left, so that it also holds as seen through the estimate.
START_SLACK = 0.05
#: From state and task time in s to a proposed action, or None if there is no proposal.
Proposer = Callable[[Array, float], Array | None]


class Plant(Protocol):
    """A robot, simulated or real, that holds each input for one control period."""

    @property
    def period(self) -> float:
        """Control period in s."""
        ...

    @property
    def state(self) -> Array:
        """True state (n,)."""
        ...

    @property
    def time(self) -> float:
        """Seconds since the reset."""
        ...

    def reset(self, seed: int, x0: Array | None = None) -> Array:
        """Start an episode at x0 (n,); returns the measured state."""
        ...

    def step(self, u: Array) -> Array:
        """Hold u (m,) for one period; returns the measured state."""
        ...


class ModelPlant:
    """The bundle's own equations and delay as a plant: exact state, no disturbance."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._state = np.zeros(len(bundle.states))
        self._steps = 0

    @property
    def period(self) -> float:
        """Control period in s."""
        return self._bundle.period

    @property
    def state(self) -> Array:
        """True state (n,)."""
        return self._state.copy()

    @property
    def time(self) -> float:
        """Seconds since the reset."""
        return self._steps * self.period

    def reset(self, seed: int, x0: Array | None = None) -> Array:
        """Start at x0, or at a start of the task drawn with `seed`."""
        start = initial_state(self._bundle, np.random.default_rng(seed)) if x0 is None else x0
        if np.shape(start) != self._state.shape:
            raise PlantError(f"x0 must have shape {self._state.shape}, got {np.shape(start)}")
        self._state, self._steps = np.array(start, np.float64), 0
        self._pending = [self._bundle.stop_action] * self._bundle.delay_steps
        return self.state

    def step(self, u: Array) -> Array:
        """x⁺ = F(x, u) of the bundle's program, with the u of `delay_steps` periods ago."""
        acting, *self._pending = [*self._pending, np.array(u, np.float64)]
        self._state = self._bundle.compiled("step", self._state, acting)
        self._steps += 1
        return self.state


def initial_state(bundle: Bundle, rng: np.random.Generator) -> Array:
    """A start of the task (n,), drawn as the task defines it."""
    return _drawn(bundle, "initial_state", rng)


def operating_state(bundle: Bundle, rng: np.random.Generator) -> Array:
    """A state (n,) uniform over the operating box; it may be unsafe."""
    return _drawn(bundle, "operating_state", rng)


def recoverable_state(bundle: Bundle, rng: np.random.Generator) -> Array:
    """A state of the operating box from which the shield has a way out, by rejection sampling.

    With a delay the states on the way to the first own action must be safe as well.
    """
    has_way_out = _way_out(bundle)
    for _ in range(100_000):
        start = x = operating_state(bundle, rng)
        safe = np.all(bundle.compiled("safe_set", x) >= bundle.margin)
        for _ in range(bundle.delay_steps):
            x = bundle.compiled("step", x, bundle.stop_action)
            safe = safe and np.all(bundle.compiled("safe_set", x) >= bundle.margin)
        if safe and has_way_out(x):
            return start
    raise PlantError(
        f"no state of {bundle.name}'s operating box has a verified backup plan in 100 000 draws; "
        "lengthen the horizon or reduce the margins"
    )


def _way_out(bundle: Bundle) -> Callable[[Array], bool]:
    """Does the backup policy's plan from x hold? Robust: with some slack for the estimate."""
    if bundle.robust is None:
        kernel = bundle.kernel()
        return lambda x: kernel.rows(x).least >= 0.0
    robust = RobustKernel.of(bundle)
    return lambda x: robust.valid(x, bundle.compiled("backup_policy", x)).slack >= START_SLACK


def _drawn(bundle: Bundle, name: str, rng: np.random.Generator) -> Array:
    size = bundle.program.functions[name].inputs[0][1]
    return bundle.compiled(name, rng.uniform(-1.0, 1.0, size))


def run_episode(
    bundle: Bundle,
    plant: Plant,
    propose: Proposer,
    shield: ShieldBase | None,
    *,
    steps: int,
    seed: int,
    x0: Array | None = None,
) -> FlightLog:
    """Fly `steps` periods; without a shield the proposal is sent as it is, clipped to the box."""
    if abs(plant.period - bundle.period) > 1e-12:
        raise PlantError(
            f"the plant's period is {plant.period} s, {bundle.name} needs {bundle.period} s"
        )
    recorder = FlightRecorder(bundle, steps)
    x = plant.reset(seed, x0)
    recorder.start(plant.state)
    if shield is not None:
        shield.reset()
    for _ in range(steps):
        t = plant.time
        proposal = propose(x, t)
        if shield is None:
            action = _unshielded(bundle, proposal)
            recorder.unshielded(t, x, proposal, action)
        else:
            result = shield.step(x, proposal)
            action = result.action
            recorder.shielded(t, x, proposal, result)
        x = plant.step(action)
        recorder.moved(plant.state)
    return recorder.log()


def _unshielded(bundle: Bundle, proposal: Array | None) -> Array:
    if proposal is None or not np.all(np.isfinite(proposal)):
        return bundle.stop_action
    return np.clip(proposal, bundle.input_low, bundle.input_high)
