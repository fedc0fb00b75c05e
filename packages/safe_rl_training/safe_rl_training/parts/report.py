"""What a training leaves behind for people: its record and its learning curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def write_training_record(record: dict[str, Any], path: Path) -> None:
    """Write training.json, readable and with sorted keys."""
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def draw_learning_curve(
    costs: list[float], validation: list[tuple[int, float]], title: str, path: Path
) -> None:
    """Cost per step: of every batch (its horizon grows) and of the fixed validation batch."""
    figure, axes = plt.subplots(figsize=(8.0, 4.5), layout="constrained")
    axes.semilogy(range(1, len(costs) + 1), costs, color="0.75", linewidth=0.8, label="batch")
    iterations, values = zip(*validation, strict=True)
    axes.semilogy(iterations, values, "C0.-", label="validation, full horizon")
    axes.set(xlabel="iteration", ylabel="cost per step", title=f"{title}: learning curve")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
