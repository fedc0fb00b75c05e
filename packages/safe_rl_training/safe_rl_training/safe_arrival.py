"""Phase I of PS2-RL: the backup policy with a large implicit set, whichever learner finds it.

    tune        the analytic recovery's gains by cross-entropy: the baseline    (arrival_tuning.py)
                left out for a recovery law whose gains nobody names
    learn       a correction network      (a `Learner`: arrival_rollout.py or arrival_td3.py)
    select      after every few blocks: the share of held-out states that the network's own kernel
                saves; the best network so far is kept
    measure     analytic, tuned and learned on the same fresh states, by horizon and on the
                published grid or pools                                 (parts/arrival_measures.py)

For a robot with a certificate "saves" means VALID, and after every selection the margins that
VALID asks for are measured anew on plans of the present network.

Results in the run's folder: checkpoint.pt, backup.npz, record.json, tb/. A resumed run gives the
same numbers, bit for bit, as one that was not interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError
from safe_rl_systems.backup.learned import (
    Layers,
    analytic_recovery,
    save_backup,
    with_backup,
)
from safe_rl_systems.robot import Robot

from safe_rl_training.arrival_rollout import RolloutArrival, RolloutSettings
from safe_rl_training.arrival_td3 import TdArrival, TdSettings
from safe_rl_training.arrival_tuning import (
    Gains,
    Tuning,
    TuningSettings,
    tune,
    with_tuning,
)
from safe_rl_training.parts import checkpoint
from safe_rl_training.parts.arrival import Array, Margins, Profile, safe_states
from safe_rl_training.parts.arrival_measures import judge, measure, robust_kernel, saved
from safe_rl_training.parts.training_log import TrainingLog

Say = Callable[[str], None]
HELD_OUT_SEED, MEASURED_SEED = 10**9, 10**9 + 1
_SCALES = 4096


class Learner(Protocol):
    """A phase-I algorithm in the middle of its run."""

    iteration: int

    @property
    def layers(self) -> Layers:
        """The correction network so far."""
        ...

    def iterate(self) -> dict[str, float]:
        """A second of work or so; scalars to log. ModelError if one is not finite."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact resume needs: tensors and plain values."""
        ...

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called, in a learner made with the same arguments."""
        ...


@runtime_checkable
class Tightened(Protocol):
    """A learner that can be told which margins the plans of its network need."""

    def set_profile(self, profile: Profile) -> None:
        """From now on, keep these."""
        ...


#: Which algorithm settings belong to; each class is called with (robot, settings, seed).
LEARNERS: dict[type, Callable[[Robot, Any, int], Learner]] = {
    RolloutSettings: RolloutArrival,
    TdSettings: TdArrival,
}


@dataclass(frozen=True)
class ArrivalSettings:
    """`learner`: its settings say which algorithm; `selections` of its network during the run.

    Numbers of states: `held_out` for selection, `measured` at the end, `pooled` per published
    pool; those of a robot with a certificate are divided by `robust_share`, because VALID takes
    longer. `horizons`: the N for which shares are reported; `grid` the N of the published grid.
    """

    learner: RolloutSettings | TdSettings = field(default_factory=RolloutSettings)
    selections: int = 10
    held_out: int = 8192
    measured: int = 40_000
    pooled: int = 4096
    robust_share: int = 8
    horizons: tuple[int, ...] = (5, 10, 20, 30, 50, 75, 100, 150, 200)
    grid: tuple[int, ...] = (20, 50)
    tuning: TuningSettings = field(default_factory=TuningSettings)

    def __post_init__(self) -> None:
        if not 1 <= self.selections <= self.learner.iterations:
            raise ModelError(
                "ArrivalSettings: 1 <= selections <= iterations of the learner, got "
                f"{self.selections} and {self.learner.iterations}"
            )

    @classmethod
    def quick(cls) -> ArrivalSettings:
        """A run of seconds that only shows that everything works."""
        return cls(
            learner=RolloutSettings(
                updates=20, block=10, batch=128, width=16, pool=2, compiled=False
            ),
            selections=1,
            held_out=256,
            measured=512,
            pooled=64,
            horizons=(20,),
            grid=(),
            tuning=TuningSettings(generations=2, candidates=6, elites=3, states=64),
        )


@dataclass(frozen=True)
class BackupResult:
    """`layers` of the selected network; `robot` with it; `record` for JSON, measures included."""

    layers: Layers
    robot: Robot
    record: dict[str, Any]

    @property
    def measures(self) -> dict[str, Any]:
        """Shares of the analytic, the tuned and the learned backup, with intervals."""
        return self.record["measures"]


@dataclass
class Run:
    """Where a run stands. `best` and its `score` on the held-out states; `history` of both.

    `tuning`: the gains of the analytic law as the tuner found them; None where it knows none.
    """

    learner: Learner
    best: Layers
    tuning: Tuning | None = None
    score: float = -1.0
    elapsed: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "learner": self.learner.state_dict(),
            "tuning": self.tuning,
            "best": [tensor for layer in self.best for tensor in layer],
            "score": self.score,
            "elapsed": self.elapsed,
            "history": self.history,
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.learner.load_state_dict(stored["learner"])
        self.tuning = stored["tuning"]
        best = stored["best"]
        self.best = tuple((best[i], best[i + 1]) for i in range(0, len(best), 2))
        self.score, self.elapsed = stored["score"], stored["elapsed"]
        self.history = stored["history"]


def train_backup(
    robot: Robot,
    settings: ArrivalSettings,
    seed: int,
    out: Path,
    resume: bool,
    say: Say,
    threads: int = 1,
    *,
    bundle: Bundle | None = None,
) -> BackupResult:
    """Phase I in the folder `out`; Ctrl-C leaves a checkpoint and raises KeyboardInterrupt.

    A robot with assumed bounds needs a `bundle` that holds its certificate.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    bundle = _judge_of(robot, bundle)
    held_out = _states(robot, settings.held_out, settings, HELD_OUT_SEED)
    learner = LEARNERS[type(settings.learner)](robot, settings.learner, seed)
    run = Run(learner, learner.layers)
    stored = {"robot": robot.name, "seed": str(seed), "settings": json.dumps(asdict(settings))}
    path = out / "checkpoint.pt"
    if resume:
        run.load_state_dict(checkpoint.load(path, stored))
        started -= run.elapsed
    else:
        profile, run.tuning = baseline(robot, settings, seed, bundle, say)
        if bundle is not None:
            _tighten(learner, profile)
    last = settings.learner.iterations
    every = math.ceil(last / settings.selections)
    log = TrainingLog(out / "tb", "phase I", learner.iteration, last)
    try:
        with checkpoint.StopRequest() as stop:
            while learner.iteration < last:
                scalars = learner.iterate()
                due = learner.iteration % every == 0 or learner.iteration == last
                if due:
                    _select(run, robot, held_out, bundle, threads)
                    run.history[-1] |= scalars
                    scalars = {**scalars, "volume/held_out": run.history[-1]["held_out"]}
                known = {name: value for name, value in scalars.items() if math.isfinite(value)}
                log.scalars(learner.iteration, known)
                log.advance(_note(run, len(held_out)))
                if due or stop.asked:
                    run.elapsed = time.monotonic() - started
                    checkpoint.save(path, stored, run.state_dict())
                if stop.asked and learner.iteration < last:
                    raise KeyboardInterrupt
    finally:
        log.close()
    say("  measuring on states that neither training nor selection saw")
    result = _finish(run, robot, settings, out, bundle, threads)
    saved_by = {name: found["share"] for name, found in result.measures["volume"].items()}
    say(f"  saved: {', '.join(f'{name} {value:.4f}' for name, value in saved_by.items())}")
    return result


def _note(run: Run, states: int) -> str:
    """What the progress line says besides the time left."""
    if not run.history:
        return ""
    latest = run.history[-1]["held_out"]
    return f"saves {latest:.4f} of {states} held-out states (best {run.score:.4f})"


def _judge_of(robot: Robot, bundle: Bundle | None) -> Bundle | None:
    """The bundle by whose certificate plans are VALID; None where the nominal kernel judges."""
    if robot.robust is None:
        return None
    if bundle is None or bundle.robust is None:
        raise ModelError(
            f"{robot.name} assumes bounds, so its plans are judged by VALID, which needs a bundle "
            "with a certificate of this robot; got none. safe-rl verify makes one"
        )
    return bundle


def _states(robot: Robot, count: int, settings: ArrivalSettings, seed: int) -> Array:
    count = count if robot.robust is None else max(1, count // settings.robust_share)
    return safe_states(robot, count, torch.Generator().manual_seed(seed)).double().numpy()


def baseline(
    robot: Robot, settings: ArrivalSettings, seed: int, bundle: Bundle | None, say: Say
) -> tuple[Profile, Tuning | None]:
    """The margins that the analytic plans need, and that law's gains as the tuner finds them.

    No gains where nobody names them.
    """
    profile = Profile.nominal(robot)
    if bundle is not None:
        held_out = _states(robot, settings.held_out, settings, HELD_OUT_SEED)
        profile = judge(robust_kernel(robot, bundle), held_out)[1] or profile
    if Gains.find(robot) is None:
        law = type(analytic_recovery(robot)).__name__
        say(
            f"  no tuned baseline: the gains of {law} are not known to the tuner; an attribute "
            "`tunable` would name them (docs/your_robot.md)"
        )
        return profile, None
    sample = safe_states(robot, _SCALES, torch.Generator().manual_seed(seed))
    margins = Margins.measured(robot, sample, profile)
    return profile, tune(robot, margins, settings.tuning, seed, say)


def _tighten(learner: Learner, profile: Profile | None) -> None:
    if profile is not None and isinstance(learner, Tightened):
        learner.set_profile(profile)


def _select(run: Run, robot: Robot, held_out: Array, bundle: Bundle | None, threads: int) -> None:
    """Score the present network on the held-out states; keep it if it is the best so far."""
    layers = run.learner.layers
    learned = with_backup(robot, layers)
    if bundle is None:
        hits = saved(learned, held_out, None, threads)
    else:
        hits, profile = judge(robust_kernel(learned, bundle), held_out)
        _tighten(run.learner, profile)
    score = float(hits.mean())
    if score > run.score:
        run.best, run.score = layers, score
    run.history.append({"iteration": run.learner.iteration, "held_out": score})


def _finish(
    run: Run,
    robot: Robot,
    settings: ArrivalSettings,
    out: Path,
    bundle: Bundle | None,
    threads: int,
) -> BackupResult:
    save_backup(out / "backup.npz", robot, run.best)
    learned = with_backup(robot, run.best)
    tuned = {} if run.tuning is None else {"tuned": with_tuning(robot, run.tuning)}
    policies = {"analytic": robot, **tuned, "learned": learned}
    pooled = settings.pooled if bundle is None else settings.pooled // settings.robust_share
    measures = measure(
        policies,
        _states(robot, settings.measured, settings, MEASURED_SEED),
        horizons=settings.horizons,
        grid=settings.grid,
        pooled=pooled,
        bundle=bundle,
        threads=threads,
    )
    record = {
        "robot": robot.name,
        "horizon": robot.horizon,
        "learner": type(run.learner).__name__,
        "judged_by": "way_out" if bundle is None else "VALID",
        "settings": asdict(settings),
        "training_s": run.elapsed,
        "history": run.history,
        "tuning": run.tuning,
        "measures": measures,
    }
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    return BackupResult(run.best, learned, record)
