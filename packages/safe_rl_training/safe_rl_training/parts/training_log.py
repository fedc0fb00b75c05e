"""What a running training shows: a progress line with the time left, TensorBoard, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter
from safe_rl_core.progress import Progress
from torch.utils.tensorboard import SummaryWriter


class TrainingLog:
    """One progress line and one TensorBoard folder; `close` ends both.

    A resumed run goes on behind iteration `done`: what a killed one had logged after its last
    checkpoint is dropped by TensorBoard.
    """

    def __init__(self, folder: Path, what: str, done: int, total: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)
        what = f"{what}, from {done}:" if done else what
        self._progress = Progress(what, total - done)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Add points to the curves."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def advance(self, note: str) -> None:
        """One more iteration is done."""
        self._progress.advance(note)

    def close(self) -> None:
        """End the line and write what is still in memory."""
        self._progress.close()
        self._writer.close()


def draw_returns(
    collected: Sequence[tuple[int, float]],
    validated: Sequence[tuple[int, float]],
    title: str,
    path: Path,
) -> None:
    """Return over environment steps: while collecting, and on the fixed validation starts."""
    figure, axes = plt.subplots(figsize=(8.0, 4.5), layout="constrained")
    if collected:
        axes.plot(*zip(*collected, strict=True), color="0.75", linewidth=0.8, label="collected")
    axes.plot(*zip(*validated, strict=True), "C0.-", label="validation, deterministic")
    axes.set_yscale("symlog", subs=(1.5, 2, 3, 5, 7))
    for axis_ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_ticks(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="environment steps", ylabel="return per episode", title=title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
