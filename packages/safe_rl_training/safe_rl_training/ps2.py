"""Phase II of PS2-RL: the run of a learner that is shielded all the time.

    iterate -> log -> (validate) -> (checkpoint), until the learner's iterations are done

Every `validate_every` iterations, and before the first, the deterministic policy flies the same
fixed starts behind the shield. The best validation return among those with no unsafe episode is
what is kept; the last policy is not better than the best only because it is the last. One true
state outside the safe set during training ends the run with an error: the shield was to prevent
just that, so no figure of such a run would mean anything.

Source: PS2-RL (arXiv 2606.14536) and its released code. Deviation: the published unicycle runs
chose their best weights by return alone, whether safe or not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.errors import ModelError

from safe_rl_training.parts import checkpoint
from safe_rl_training.parts.learner import Learner
from safe_rl_training.parts.networks import PolicyNetwork
from safe_rl_training.parts.training_log import TrainingLog

Array = NDArray[np.float64]
#: observations (B, k) -> actions (B, m)
PolicyFunction = Callable[[Array], Array]
#: Scores of a policy on the fixed validation starts; "return_mean" and "unsafe_episodes" decide.
Validate = Callable[[PolicyFunction], Mapping[str, Any]]
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class RunSettings:
    """How long, and how often what is looked at; `save_every_s` is wall time."""

    iterations: int
    validate_every: int
    save_every_s: float = 30.0


@dataclass
class Standing:
    """What a run has shown so far, besides the learner itself.

    `collected`: (env steps, return) while training; `validated`: (env steps, return, unsafe
    episodes); `best`: the network with the best validation return, at iteration `best_at`.
    """

    collected: list[tuple[int, float]] = field(default_factory=list)
    validated: list[tuple[int, float, int]] = field(default_factory=list)
    best: dict[str, torch.Tensor] | None = None
    best_return: float = -math.inf
    best_at: int = 0
    elapsed: float = 0.0


def as_function(network: PolicyNetwork) -> PolicyFunction:
    """The network as a function of arrays, wherever its weights are."""

    @torch.no_grad()
    def act(observation: Array) -> Array:
        inputs = torch.as_tensor(observation, dtype=torch.float32, device=network.mean.device)
        return network(inputs).double().cpu().numpy()

    return act


def run(
    learner: Learner,
    validate: Validate,
    settings: RunSettings,
    folder: Path,
    *,
    identity: Mapping[str, Any],
    resume: bool = False,
    what: str = "phase II",
) -> Standing:
    """Train to the end; Ctrl-C leaves a checkpoint and raises KeyboardInterrupt.

    `identity` is everything that must be the same when the run is resumed.
    """
    path = folder / CHECKPOINT
    standing = Standing()
    if resume and path.is_file():
        standing = _load(learner, path, identity)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic() - standing.elapsed
    log = TrainingLog(folder / "tb", what, learner.iteration, settings.iterations)
    next_save = time.monotonic() + settings.save_every_s

    def save() -> None:
        nonlocal next_save
        before = time.monotonic()
        standing.elapsed = before - started
        _save(learner, standing, path, identity)
        now = time.monotonic()
        # A replay of some 100 MB takes its time: at most a twentieth of it all.
        next_save = now + max(settings.save_every_s, 20.0 * (now - before))

    try:
        with checkpoint.StopRequest() as stop:
            if not standing.validated:
                _validate(learner, validate, standing, log)
            while learner.iteration < settings.iterations:
                _iterate(learner, standing, log)
                last = learner.iteration == settings.iterations
                if last or learner.iteration % settings.validate_every == 0:
                    _validate(learner, validate, standing, log)
                if last or stop.asked or time.monotonic() >= next_save:
                    save()
                if stop.asked and not last:
                    raise KeyboardInterrupt
    finally:
        log.close()
    if standing.best is None:
        raise ModelError(
            f"none of {len(standing.validated)} validations was without an unsafe episode, so no "
            "policy is kept; the task's starts may lie outside of the implicit set: look at the "
            "backup policy, or at a longer horizon"
        )
    return standing


def best_network(learner: Learner, standing: Standing) -> PolicyNetwork:
    """The network that won the validations, on the CPU."""
    network = copy.deepcopy(learner.policy).cpu()
    network.load_state_dict(standing.best or {})
    return network


def _iterate(learner: Learner, standing: Standing, log: TrainingLog) -> None:
    before = learner.iteration
    scalars = learner.iterate()
    at = learner.iteration
    if at <= before:
        raise ModelError(f"the learner did not count its iteration: {before} before, {at} after")
    if learner.violations:
        raise ModelError(
            f"{learner.violations} states outside of the safe set within {learner.env_steps} "
            f"training steps, at iteration {at}: the shield should make this impossible, so the "
            "run ends here and writes no bundle; report it with the run's settings and seed"
        )
    # Not every window ends an episode, so a return may be missing.
    known = {name: value for name, value in scalars.items() if math.isfinite(value)}
    if "return" in known:
        standing.collected.append((learner.env_steps, known["return"]))
    log.scalars(at, {**known, "env_steps": learner.env_steps, "violations": 0.0})
    log.advance(_note(learner, standing))


def _note(learner: Learner, standing: Standing) -> str:
    """What the progress line says besides the time left."""
    best = f"best {standing.best_return:.1f}" if standing.best is not None else "none safe yet"
    latest = standing.validated[-1][1]
    return f"{learner.env_steps} steps, 0 violations, validation {latest:.1f} ({best})"


def _validate(learner: Learner, validate: Validate, standing: Standing, log: TrainingLog) -> None:
    scores = validate(as_function(learner.policy))
    mean, unsafe = float(scores["return_mean"]), int(scores["unsafe_episodes"])
    standing.validated.append((learner.env_steps, mean, unsafe))
    if unsafe == 0 and mean > standing.best_return:
        standing.best_return, standing.best_at = mean, learner.iteration
        standing.best = {
            k: v.detach().cpu().clone() for k, v in learner.policy.state_dict().items()
        }
    log.scalars(
        learner.iteration, {"validation/return": mean, "validation/unsafe_episodes": unsafe}
    )


def _save(learner: Learner, standing: Standing, path: Path, identity: Mapping[str, Any]) -> None:
    state = {"learner": learner.state_dict(), "standing": vars(standing)}
    checkpoint.save(path, identity, state)


def _load(learner: Learner, path: Path, identity: Mapping[str, Any]) -> Standing:
    state = checkpoint.load(path, identity)
    learner.load_state_dict(state["learner"])
    return Standing(**state["standing"])
