"""A flight of each robot against the worst world that its certificate allows."""

from __future__ import annotations

import numpy as np
from common import ROBOTS, Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from safe_rl.report import style
from safe_rl.report.geometry import true_margins
from safe_rl_core.adversary import make_proposer
from safe_rl_core.assumed import AssumedPlant
from safe_rl_core.bundle import Bundle
from safe_rl_core.loop import recoverable_state, run_episode
from safe_rl_core.record import VERDICTS
from safe_rl_core.robust_shield import RobustShield
from safe_rl_core.shield_base import ShieldResult

#: Length of the flights in s, and a seed whose first draw is the policy "worst corner".
SECONDS, SEED = 6.0, 11
#: Less slack is drawn as this: an input that lies on its bound leaves none.
LEAST = 1e-6


class Watched(RobustShield):
    """Keeps sigma after every answer."""

    def step(self, x: Array, u_proposed: Array | None) -> ShieldResult:
        """As the shield, once per period."""
        result = super().step(x, u_proposed)
        self.sigmas.append(self.sigma())
        return result

    def reset(self) -> None:
        """A new flight."""
        super().reset()
        self.sigmas: list[float] = []


def adversary() -> Figure:
    """Slack and sigma in the worst world, one column per robot."""
    with style.figure_style():
        figure = Figure(figsize=(7.6, 6.2), layout="constrained")
        panels = figure.subplots(4, 2, sharex=True, height_ratios=[2.2, 1.6, 1.6, 0.8])
        for column, name in zip(panels.T, ROBOTS, strict=True):
            _hostile_flight(column, Bundle.load(name))
        handles = [Patch(color=colour, label=v) for v, colour in style.VERDICT_COLOURS.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _hostile_flight(panels: list[Axes], bundle: Bundle) -> None:
    rng, shield = np.random.default_rng(SEED), Watched(bundle)
    log = run_episode(
        bundle,
        AssumedPlant(bundle, "gradient"),
        make_proposer("adversarial", bundle, rng),
        shield,
        steps=round(SECONDS / bundle.period),
        seed=SEED,
        x0=recoverable_state(bundle, rng),
    )
    margin, slack, sigma, answers = panels
    truth = true_margins(bundle, log.x_true)[0]
    margin.axhline(0.0, color=style.DANGER, linewidth=1.4)
    margin.plot(log.t, truth[:-1], color=style.MARGIN, linewidth=1.3)
    margin.set_title(f"{bundle.name}: least hᵢ {truth.min():+.3f}", fontsize=10)
    slack.semilogy(log.t, np.maximum(log.margin, LEAST), ".", color=style.INK, markersize=2.5)
    slack.set_ylim(0.5 * LEAST, 1.0)
    sigma.axhline(1.0, color=style.DANGER, linewidth=1.4)
    sigma.plot(log.t, shield.sigmas, color=style.SAFE_ACTION, linewidth=1.0)
    height = [style.VERDICT_HEIGHTS[VERDICTS[v]] for v in log.verdict]
    colours = [style.VERDICT_COLOURS[VERDICTS[v]] for v in log.verdict]
    answers.bar(log.t, height, bundle.period, color=colours, align="edge", linewidth=0)
    answers.set_yticks([])
    answers.grid(False)
    answers.set_xlabel("time (s)")
    answers.set_xlim(0.0, log.t[-1] + bundle.period)
    if bundle.robot == "unicycle":
        margin.set_ylabel("least hᵢ of the\ntrue state (m, rad, m/s)")
        slack.set_ylabel("slack of the\nplan in hand")
        sigma.set_ylabel("σ of the\nplan in hand")
        answers.set_ylabel("answer")
    else:
        margin.set_ylabel("(m)")
