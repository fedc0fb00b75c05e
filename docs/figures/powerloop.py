"""The powerloop under the ceiling: one shield in full physics, two policies."""

from __future__ import annotations

import tempfile
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safe_rl.episodes import Runner, Scenario
from safe_rl.report import style
from safe_rl.report.draw_path import path
from safe_rl.report.verdicts import verdict_legend
from safe_rl_core.bundle import Bundle
from safe_rl_core.metrics import summarise
from safe_rl_systems.build import BACKUP, robot_of, write_bundle

MODELS = Path(__file__).parents[2] / "models"
NAME, TRACKER = "quadrotor_powerloop", MODELS / "trackers" / "quadrotor.onnx"
LAPS, SEED = 5, 0


def powerloop() -> Figure:
    """Side views: a tracker behind the shield, and the policy that was trained behind it."""
    shipped = MODELS / NAME
    with tempfile.TemporaryDirectory() as folder, style.figure_style():
        tracker = write_bundle(
            robot_of(shipped), TRACKER, "For a picture.\n", Path(folder), backup=shipped / BACKUP
        )
        figure = Figure(figsize=(10.0, 5.2), layout="constrained")
        panels = figure.subplots(1, 2)
        _flight(panels[0], "Shield put in front", tracker.path)
        _flight(panels[1], "Trained behind the shield", shipped)
        for limits in ("xlim", "ylim"):
            both = [getattr(axes, f"get_{limits}")() for axes in panels]
            low, high = min(b[0] for b in both), max(b[1] for b in both)
            for axes in panels:
                axes.set(**{limits: (low, high)})
        figure.legend(handles=verdict_legend(), loc="outside lower center", ncols=3)
    return figure


def _flight(axes: Axes, title: str, folder: Path) -> None:
    bundle = Bundle.load(folder)
    steps = round(LAPS * bundle.task.lap_s / bundle.period)
    runner = Runner(Scenario(str(folder), "bullet", "onnx", True, steps, "task"))
    log = runner.fly(SEED)
    scores = summarise(bundle, log)
    path(axes, bundle, log)
    passed = scores["interventions"]["PASSED"] / steps
    axes.set_title(f"{title}: {passed:.0%} of the actions passed", fontsize=10)
