"""A tracker by back-propagation through the robot's own equations, without a shield.

    minimise  E  1/H sum_k  rho(c_k) + smoothness |(u_k - u_{k-1}) / half_range|²
    c_k = -reward(x_{k+1}, u_k, t_{k+1}) + sum_i w_i (x_{k+1} - x_ref)_i²
          + keep_weight sum_j max(0, d_j - h_j(x_{k+1}))²
    rho(c) = s (sqrt(1 + 2 c / s) - 1)       quadratic errors near the reference, linear far away

over starts near and far from the reference (`parts/starts.py`) and over actuators that lag, are
late and are wrong by a constant factor (`parts/actuators.py`); the network sees none of these. The
rows h_j are those that the reference itself respects (the floor, not the ceiling). The equations
are differentiable, so Adam gets the exact gradient of H steps. H grows during the first half of
training: short horizons teach the inner loop before the outer one depends on it.

    python -m safe_rl_training.tracker quadrotor --seed 0 --out runs/tracker
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safe_rl_core.errors import ModelError
from safe_rl_systems.control_affine import clip_to_box
from safe_rl_systems.robot import ROBOTS, Robot
from torch import Tensor

from safe_rl_training.evaluation import evaluate
from safe_rl_training.export import export_policy
from safe_rl_training.parts.actuators import Actuators, draw, step_with
from safe_rl_training.parts.compiling import compiled
from safe_rl_training.parts.networks import PolicyNetwork, network_for
from safe_rl_training.parts.provenance import provenance
from safe_rl_training.parts.report import draw_learning_curve, write_training_record
from safe_rl_training.parts.starts import start_states
from safe_rl_training.recipes import RECIPES, Recipe

Advance = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
VALIDATION_SEED = 10**9
REPORT_EVERY = 50


@dataclass
class Progress:
    """Where a training stands; everything needed to go on is in its checkpoint.

    `elapsed` is wall time in s, compilation included; `curve` the cost of every batch;
    `validation` (iteration, cost) of the fixed validation batch.
    """

    network: PolicyNetwork
    optimiser: torch.optim.Adam
    generator: torch.Generator
    iteration: int = 0
    elapsed: float = 0.0
    curve: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)


def begin(recipe: Recipe, robot: Robot, seed: int) -> Progress:
    """A fresh network with measured normalisation, its optimiser and its random source."""
    recipe.imperfection.check(robot.system)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = network_for(robot.system, len(robot.task.observation_names), recipe.hidden)
    with torch.no_grad():
        x, t = start_states(robot.task, 8192, generator)
        network.measure_normalisation(robot.task.observation(x, t))
    return Progress(network, torch.optim.Adam(network.parameters()), generator)


def save(progress: Progress, recipe: Recipe, seed: int, path: Path) -> None:
    """Write the checkpoint: tensors and plain values only, loadable with weights_only=True."""
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "network": progress.network.state_dict(),
            "optimiser": progress.optimiser.state_dict(),
            "generator": progress.generator.get_state(),
            "iteration": progress.iteration,
            "elapsed": progress.elapsed,
            "curve": progress.curve,
            "validation": progress.validation,
            "recipe": asdict(recipe),
            "seed": seed,
        },
        partial,
    )
    partial.replace(path)


def resume(progress: Progress, recipe: Recipe, seed: int, path: Path) -> None:
    """Continue from a checkpoint of the same recipe and seed."""
    if not path.is_file():
        raise ModelError(f"--resume: no checkpoint at {path}; start without --resume")
    stored = torch.load(path, weights_only=True)
    if stored["recipe"] != asdict(recipe) or stored["seed"] != seed:
        raise ModelError(f"{path} was made with another recipe or seed; start without --resume")
    progress.network.load_state_dict(stored["network"])
    progress.optimiser.load_state_dict(stored["optimiser"])
    progress.generator.set_state(stored["generator"])
    progress.iteration, progress.elapsed = stored["iteration"], stored["elapsed"]
    progress.curve, progress.validation = stored["curve"], stored["validation"]


def make_advance(recipe: Recipe, robot: Robot, network: PolicyNetwork) -> Advance:
    """One step of the closed loop: (x, delivered, previous, t, actuators) -> the same next, cost.

    `delivered` and `previous` (B, m) are what the actuators give and the last command; t (B, 1).
    """
    system, task = robot.system, robot.task
    weights = torch.tensor([recipe.state_cost.get(c.name, 0.0) for c in system.states])
    rows = [robot.safe_set.names.index(name) for name in recipe.keep]
    distance = torch.tensor(list(recipe.keep.values()))

    def advance(
        x: Tensor, delivered: Tensor, previous: Tensor, t: Tensor, actuators: Actuators
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u = network(task.observation(x, t))
        x_next, delivered = step_with(actuators, system, x, delivered, previous, u)
        t_next = t + system.period
        error = x_next - task.reference(t_next)
        short = (distance - robot.safe_set(x_next)[..., rows]).clamp(min=0.0)
        cost = (
            (weights * error**2).sum(-1)
            + recipe.keep_weight * (short**2).sum(-1)
            - task.reward(x_next, u, t_next)[..., 0]
        )
        bounded = recipe.cost_scale * (torch.sqrt(1.0 + 2.0 * cost / recipe.cost_scale) - 1.0)
        change = (((u - previous) / network.half_range) ** 2).sum(-1)
        return x_next, delivered, u, bounded + recipe.smoothness * change

    return advance


@dataclass(frozen=True)
class Starts:
    """A batch of flights about to begin: x (B, n), t (B, 1), actuators and what they deliver."""

    x: Tensor
    t: Tensor
    actuators: Actuators
    delivered: Tensor


@torch.no_grad()
def draw_starts(
    recipe: Recipe, robot: Robot, network: PolicyNetwork, generator: torch.Generator
) -> Starts:
    """A fresh batch. Actuators are near the policy's first command, not at it."""
    x, t = start_states(robot.task, recipe.batch, generator)
    actuators = draw(recipe.imperfection, robot.system, recipe.batch, generator)
    u = network(robot.task.observation(x, t))
    noise = torch.randn(u.shape, generator=generator)
    delivered = clip_to_box(robot.system, u + 0.2 * network.half_range * noise)
    return Starts(x, t, actuators, delivered)


def rollout_cost(advance: Advance, starts: Starts, steps: int, period: float) -> Tensor:
    """Mean cost per step of `steps` periods. -> scalar."""
    x, delivered, previous = starts.x, starts.delivered, starts.delivered
    total = torch.zeros(())
    for k in range(steps):
        t = starts.t + k * period
        x, delivered, previous, cost = advance(x, delivered, previous, t, starts.actuators)
        total = total + cost.mean()
    return total / steps


def validation_cost(
    recipe: Recipe, robot: Robot, network: PolicyNetwork, advance: Advance
) -> float:
    """Cost per step over the last horizon, on the same starts and actuators every time."""
    fixed = torch.Generator().manual_seed(VALIDATION_SEED)
    starts = draw_starts(recipe, robot, network, fixed)
    # With gradients on, although unused: a compiled step would else be compiled once more.
    return rollout_cost(advance, starts, recipe.horizon[1], robot.system.period).item()


def train(
    recipe: Recipe,
    robot: Robot,
    progress: Progress,
    advance: Advance,
    until: int,
    report: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Run iterations up to `until`; validate and report every REPORT_EVERY and at the end."""
    parameters = list(progress.network.parameters())
    started = time.monotonic() - progress.elapsed
    while progress.iteration < until:
        starts = draw_starts(recipe, robot, progress.network, progress.generator)
        steps = recipe.horizon_at(progress.iteration)
        loss = rollout_cost(advance, starts, steps, robot.system.period)
        if not torch.isfinite(loss):
            raise ModelError(
                f"cost is {loss.item()} at iteration {progress.iteration}; lower learning_rate or "
                "the first horizon of the recipe"
            )
        progress.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_limit)
        for group in progress.optimiser.param_groups:
            group["lr"] = recipe.learning_rate_at(progress.iteration)
        progress.optimiser.step()
        progress.curve.append(loss.item())
        progress.iteration += 1
        if progress.iteration % REPORT_EVERY == 0 or progress.iteration == until:
            cost = validation_cost(recipe, robot, progress.network, advance)
            progress.validation.append((progress.iteration, cost))
            progress.elapsed = time.monotonic() - started
            report(progress)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m safe_rl_training.tracker",
        description="Train a tracker through the differentiable model and export it to ONNX.",
    )
    parser.add_argument("robot", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--resume", action="store_true", help="continue from OUT/checkpoint.pt")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="skip torch.compile: about four times slower",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, export, evaluate and write the record of one run."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    recipe = RECIPES[args.robot]
    robot = ROBOTS[recipe.robot]()
    args.out.mkdir(parents=True, exist_ok=True)
    command = f"python -m safe_rl_training.tracker {args.robot} --seed {args.seed}"
    # Taken before the first step: the sources may change while the training runs.
    started_from = provenance(command, args.seed, args.threads)
    progress = begin(recipe, robot, args.seed)
    if args.resume:
        resume(progress, recipe, args.seed, args.out / "checkpoint.pt")

    def report(p: Progress) -> None:
        print(
            f"{p.iteration:5d}/{recipe.iterations}  horizon {recipe.horizon_at(p.iteration):3d}"
            f"  validation cost per step {p.validation[-1][1]:8.3f}  {p.elapsed:6.0f} s",
            flush=True,
        )
        save(p, recipe, args.seed, args.out / "checkpoint.pt")

    advance = make_advance(recipe, robot, progress.network)
    advance = compiled(advance, not args.no_compile)
    train(recipe, robot, progress, advance, recipe.iterations, report)
    made_by = {**started_from, "duration_s": f"{progress.elapsed:.1f}"}
    _write_results(args.out, recipe, robot, progress, made_by)
    return 0


def _write_results(
    out: Path, recipe: Recipe, robot: Robot, progress: Progress, made_by: dict[str, str]
) -> None:
    record = {
        "provenance": made_by,
        "recipe": asdict(recipe),
        "validation_cost": progress.validation[-1][1],
        "export": export_policy(progress.network, robot, made_by, out / "policy.onnx"),
        "evaluation": {
            name: figures
            for variant in (robot, *(ROBOTS[name]() for name in robot.variants.values()))
            for name, figures in evaluate(progress.network, variant, recipe.tested_lags).items()
        },
    }
    write_training_record(record, out / "training.json")
    draw_learning_curve(
        progress.curve, progress.validation, recipe.robot, out / "learning_curve.png"
    )
    print(f"wrote policy.onnx, training.json, learning_curve.png, checkpoint.pt to {out}")


if __name__ == "__main__":
    sys.exit(main())
