"""Many episodes without ROS, on several cores: what `safe-rl simulate` runs.

Episode i of seed S is the flight with seed S + i: its start, its vehicle, its noise and its random
proposals depend on that number alone, so the result is the same for any number of processes, and
any single episode can be flown again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.adversary import make_proposer
from safe_rl_core.bundle import Bundle
from safe_rl_core.loop import Proposer, initial_state, recoverable_state, run_episode
from safe_rl_core.metrics import summarise
from safe_rl_core.policy import Policy
from safe_rl_core.record import FlightLog
from safe_rl_core.robust_shield import make_shield
from safe_rl_core.shield import Shield

STARTS = ("task", "recoverable")


@dataclass(frozen=True)
class Scenario:
    """What to fly.

    `bundle`: its folder; `plant`: "model", "bullet" or "assumed"; `steps`: periods per episode;
    `start`: "task" (the task's own) or "recoverable" (anywhere in the operating box with a
    verified backup plan); `adversary`, `scale`: how "assumed" uses its bounds; `nominal`: the
    nominal shield also where the bundle has a certificate.
    """

    bundle: str
    plant: str
    policy: str
    shielded: bool
    steps: int
    start: str
    noise: float = 0.0
    delay_steps: int = 0
    adversary: str = "corner"
    scale: float = 1.0
    nominal: bool = False


@dataclass(frozen=True)
class Episode:
    """One finished episode: its seed, its summary, and the time of every shield step (µs)."""

    seed: int
    summary: dict[str, Any]
    shield_us: NDArray[np.float32]


class Runner:
    """Bundle, plant and shield of one process, made once and used for every episode."""

    def __init__(self, scenario: Scenario) -> None:
        from sim_bridge import simulated

        self.scenario = scenario
        self.bundle = Bundle.load(scenario.bundle)
        self.shield = None
        if scenario.shielded:
            self.shield = (Shield if scenario.nominal else make_shield)(self.bundle)
        self._policy = Policy(self.bundle) if scenario.policy == "onnx" else None
        names = ("noise", "delay_steps", "adversary", "scale")
        options = {name: getattr(scenario, name) for name in names}
        self._plant = simulated.make(self.bundle, scenario.plant, **options)

    def fly(self, seed: int) -> FlightLog:
        """One episode."""
        make = initial_state if self.scenario.start == "task" else recoverable_state
        return run_episode(
            self.bundle,
            self._plant,
            self._proposer(seed),
            self.shield,
            steps=self.scenario.steps,
            seed=seed,
            x0=make(self.bundle, np.random.default_rng(seed)),
        )

    def episode(self, seed: int) -> Episode:
        """One episode, summarised."""
        log = self.fly(seed)
        return Episode(seed, summarise(self.bundle, log), log.shield_us.astype(np.float32))

    def _proposer(self, seed: int) -> Proposer:
        if self._policy is not None:
            return self._policy.act
        rng = np.random.default_rng([seed, 1])
        return make_proposer(self.scenario.policy, self.bundle, rng)


_runner: Runner | None = None  # of a worker process


def fly_all(
    scenario: Scenario, seed: int, episodes: int, jobs: int, done: Callable[[Episode], None]
) -> list[Episode]:
    """Fly episodes seed … seed + episodes - 1; `done` hears of each one. In the order of seeds."""
    seeds = range(seed, seed + episodes)
    found = []
    for episode in _in_processes(scenario, seeds, min(jobs, episodes)):
        found.append(episode)
        done(episode)
    return sorted(found, key=lambda episode: episode.seed)


def _in_processes(scenario: Scenario, seeds: range, jobs: int) -> Iterator[Episode]:
    # Made here first: errors come out plainly, and the kernel is compiled once, not in each worker
    runner = Runner(scenario)
    if jobs == 1:
        yield from map(runner.episode, seeds)
        return
    context = multiprocessing.get_context("spawn")  # onnxruntime's threads do not survive a fork
    with context.Pool(jobs, _start_worker, (scenario,)) as pool:
        chunk = max(1, min(32, len(seeds) // (8 * jobs)))
        yield from pool.imap_unordered(_fly_in_worker, seeds, chunk)


def _start_worker(scenario: Scenario) -> None:
    global _runner
    _runner = Runner(scenario)


def _fly_in_worker(seed: int) -> Episode:
    assert _runner is not None  # set by the pool's initializer
    return _runner.episode(seed)
