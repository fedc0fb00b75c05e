"""What is measured: the flying robots with analytic, published-size neural and shipped backups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.adversary import make_proposer
from safe_rl_core.bundle import Bundle
from safe_rl_core.loop import ModelPlant, initial_state, recoverable_state
from safe_rl_systems.build import robot_of, robot_program
from safe_rl_systems.robot import ROBOTS, Robot

from toolbox.neural import STEPS, neural_bundle, neural_robot

Array = NDArray[np.float64]

ROOT = Path(__file__).parents[2]
EPISODE = 150


@dataclass(frozen=True)
class Case:
    """A bundle to measure and the torch definition that it was traced from."""

    bundle: Bundle
    robot: Robot
    backup: str

    @property
    def label(self) -> str:
        """For the first column of a table."""
        return f"{self.bundle.robot}, {self.backup} backup, N = {self.bundle.horizon}"

    @property
    def key(self) -> str:
        """For JSON."""
        return f"{self.bundle.robot}_{self.backup}_{self.bundle.horizon}"


def cases(training_steps: int, say: Callable[[str], None]) -> list[Case]:
    """Analytic backups; neural ones at the horizons of the published comparison."""
    found = []
    neural = []
    for name, horizons in (("unicycle_lane", (50,)), ("quadrotor_powerloop", (100, 200))):
        shipped, robot = Bundle.load(ROOT / "models" / name), ROBOTS[name]()
        analytic = replace(shipped, program=robot_program(robot))
        found.append(Case(analytic, robot, "analytic"))
        trained = neural_robot(name, training_steps, say)
        neural += [Case(neural_bundle(shipped, trained, n), trained, "neural") for n in horizons]
    return found + neural


def shipped() -> list[Case]:
    """The flying bundles as they are, with the backup policies that phase I learned."""
    folders = (ROOT / "models" / name for name in ("unicycle_lane", "quadrotor_powerloop"))
    return [Case(Bundle.load(folder), robot_of(folder), "shipped") for folder in folders]


def training_steps(quick: bool) -> int:
    """How long the neural backup is trained."""
    return 200 if quick else STEPS


def without_delay(case: Case) -> Case:
    """The same case with commands that act at once, so that one step stands for itself."""
    return replace(case, bundle=replace(case.bundle, delay_steps=0))


def episodes(
    bundle: Bundle, seed: int
) -> Iterator[tuple[ModelPlant, Callable[..., Array | None], Array]]:
    """Endless episodes: plant, proposer and start; task policy and adversary in turns."""
    rng = np.random.default_rng(seed)
    kernel, plant = bundle.kernel(), ModelPlant(bundle)
    number = 0
    while True:
        kind = ("onnx", "adversarial")[number % 2]
        start = initial_state(bundle, rng)
        if kind == "adversarial" or kernel.rows(start).least < 0.0:
            start = recoverable_state(bundle, rng)
        yield plant, make_proposer(kind, bundle, rng), plant.reset(0, start)
        number += 1
