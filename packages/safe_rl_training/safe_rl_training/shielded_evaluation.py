"""Very many episodes behind the nominal shield, on a robot's own equations.

    python -m safe_rl_training.shielded_evaluation models/quadrotor_powerloop --episodes 100000

    u_k = shield(x_{k+d}, proposal(x_k, t_k))     x_{k+1} = F(x_k, u_{k-d})     d = delay_steps

What `safe-rl simulate --plant model --nominal` flies one by one, many at a time; the scores are
those of docs/benchmark.md. Episode i of seed S has the generators of that command's seed S + i;
nothing else decides it, not the batch that it lies in, nor the threads. (A network is always asked
for BLOCK states at once, because a matrix product may round differently in another size.)

Where simulate takes every start of the task, a start is drawn again here while the shield knows no
way out from it; `share_of_starts_rejected` says how often.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safe_rl_core.adversary import Adversaries, WorstCorner
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError, SafeRLError
from safe_rl_core.kernel.batch import BACKUP, PASSED, BatchKernel
from safe_rl_core.metrics import wilson
from safe_rl_core.record import VERDICTS
from safe_rl_systems.build import batch_kernel, description
from safe_rl_systems.robot import Robot

Array = NDArray[np.float64]
#: From observations (B, k) float32 to proposals (B, m) in SI units.
PolicyFunction = Callable[[Any], Any]
#: From true states (B, n) and the task time in s to proposals (B, m); nan: none.
Propose = Callable[[Array, float], Array]
NAMED = ("backup", "stop", "adversarial")
STARTS = {"task": "initial_state", "recoverable": "operating_state"}
BLOCK = 256
MOST_DRAWS = 100_000
SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Case:
    """What a flight needs to know of a robot; `rest` makes the kernel of `WorstCorner`."""

    kernel: BatchKernel
    rest: Callable[[], BatchKernel]
    period: float
    steps: int
    delay_steps: int
    input_low: Array
    input_high: Array
    input_scale: Array
    stop_action: Array
    margin: Array
    rows: tuple[str, ...]
    tracked: dict[str, int]


def case_of(robot: Robot | Bundle, threads: int, kernel: BatchKernel | None = None) -> Case:
    """The case of a robot's definition or of a bundle; `kernel` if there is one already."""
    if isinstance(robot, Bundle):
        own, source, duration = robot.kernel(), robot, robot.task.duration_s
        states, inputs, rows = robot.states, robot.inputs, robot.safe_set_names
        period, margins = robot.period, robot.margins
        kernel = kernel or BatchKernel.of(robot, threads)

        def rest() -> BatchKernel:
            return BatchKernel(own.compiled, own.theorem, own.horizon - 1, threads)
    else:
        source, duration = robot, robot.duration
        states, inputs, rows = robot.system.states, robot.system.inputs, robot.safe_set.names
        period, margins = robot.system.period, description(robot)["margins"]
        kernel = kernel or batch_kernel(robot, threads)

        def rest() -> BatchKernel:
            return batch_kernel(replace(robot, horizon=robot.horizon - 1), threads)

    names = [channel.name for channel in states]
    return Case(
        kernel=kernel,
        rest=rest,
        period=period,
        steps=max(1, round(duration / period)),
        delay_steps=source.delay_steps,
        input_low=np.array([c.low for c in inputs]),
        input_high=np.array([c.high for c in inputs]),
        input_scale=np.array(source.input_scale),
        stop_action=np.array(source.stop_action),
        margin=np.array([margins[name] for name in rows]),
        rows=tuple(rows),
        tracked={name: names.index(name) for name in source.task.tracked},
    )


def evaluate_shielded(
    robot: Robot | Bundle,
    policy: PolicyFunction | str,
    episodes: int,
    seed: int,
    threads: int,
    *,
    shielded: bool = True,
    starts: str = "task",
    kernel: BatchKernel | None = None,
    batch: int = 1024,
    anchors: tuple[float, float] | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Scores of episodes seed .. seed + episodes - 1, ready for JSON, SI units.

    `policy`: a function, "backup" (no proposal at all), "stop" or "adversarial". `starts`: "task",
    or "recoverable": anywhere in the operating box with a way out. `batch`: how many fly at once.
    `anchors`: the returns of "stop" and of the best known safe flight, for the safe reward.
    Functions are called from several threads.
    """
    if starts not in STARTS or min(episodes, threads, batch) < 1:
        raise ModelError(
            f"expected starts of {', '.join(STARTS)} and episodes, threads, batch >= 1, got "
            f"{starts!r} and {episodes}, {threads}, {batch}"
        )
    if policy == "backup" and not shielded:
        raise ModelError("it is the shield that flies the backup policy; leave shielded=False out")
    case = case_of(robot, threads, kernel)
    source = _source(case, policy)
    batch = min(batch, -(-episodes // threads))
    cuts = [range(i, min(i + batch, seed + episodes)) for i in range(seed, seed + episodes, batch)]
    begun, found = time.monotonic(), []
    spoken = begun
    with ThreadPoolExecutor(min(threads, len(cuts))) as executor:
        for tally in executor.map(lambda s: _fly(case, s, source(s), shielded, starts), cuts):
            found.append(tally)
            if say is not None and time.monotonic() > spoken + SAY_EVERY_S:
                spoken = time.monotonic()
                done = found[-1].seeds[-1] + 1 - seed
                left = (spoken - begun) * (episodes - done) / done
                say(f"{done} of {episodes} episodes, {left:.0f} s left")
    scores = _scores(case, found, shielded)
    scores["steps_per_s"] = scores["steps"] / (time.monotonic() - begun)
    if anchors is not None:
        scores["safe_reward"] = safe_reward(scores, *anchors)
    return scores


def safe_reward(scores: Mapping[str, Any], stop: float, best: float) -> float:
    """Mean of (return - stop) / (best - stop) over the episodes, an unsafe one counting 0."""
    if not best > stop:
        raise ModelError(f"the best known safe return must exceed that of 'stop': {best}, {stop}")
    safe = scores["safe_return_mean"]
    return 0.0 if safe is None else scores["safety_probability"] * (safe - stop) / (best - stop)


def policy_function(path: Path) -> tuple[PolicyFunction, dict[str, str]]:
    """A policy.onnx that `export.py` wrote as a function of many observations; its metadata.

    onnxruntime takes what the file says: one observation per call.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:  # each of protobuf, OSError and ValueError may come
        raise ModelError(f"{path} is no ONNX file: {error}; export the policy again") from error
    value = {w.name: torch.tensor(numpy_helper.to_array(w)) for w in model.graph.initializer}
    operators: dict[str, Callable[..., torch.Tensor]] = {
        "Sub": torch.sub, "Div": torch.div, "Mul": torch.mul, "Add": torch.add,
        "Tanh": torch.tanh, "Relu": torch.relu, "Gemm": torch.nn.functional.linear,
    }  # fmt: skip
    chain, before = [], "observation"
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        wanted = {"transB": 1} if node.op_type == "Gemm" else {}
        known = all(name in value for name in node.input[1:]) and attributes == wanted
        if node.op_type not in operators or node.input[0] != before or not known:
            raise ModelError(
                f"{path}: node '{node.name}' ({node.op_type}) does not fit the chain of "
                f"{', '.join(operators)} that export.py writes; fly it by `safe-rl simulate`"
            )
        chain.append((operators[node.op_type], [value[name] for name in node.input[1:]]))
        (before,) = node.output
    if before != "action":
        raise ModelError(f"{path}: its chain ends in '{before}', expected 'action'")

    def act(observation: Any) -> Array:
        with torch.no_grad():
            out = torch.as_tensor(observation, dtype=torch.float32)
            for operator, constants in chain:
                out = operator(out, *constants)
            return out.double().numpy()

    return act, {entry.key: entry.value for entry in model.metadata_props}


def _source(case: Case, policy: PolicyFunction | str) -> Callable[[Sequence[int]], Propose]:
    """From the seeds of a batch to what is proposed in it."""
    if callable(policy):
        return lambda seeds: lambda x, t: _asked(case.kernel, policy, x, t)
    if policy == "adversarial":
        worst = WorstCorner(case, case.margin, case.rest())
        return lambda seeds: Adversaries(
            case, worst, [np.random.default_rng([seed, 1]) for seed in seeds]
        )
    if policy not in NAMED:
        raise ModelError(f"expected a function or one of {', '.join(NAMED)}, got {policy!r}")
    u = case.stop_action if policy == "stop" else np.full_like(case.stop_action, math.nan)
    return lambda seeds: lambda x, t: np.tile(u, (len(x), 1))


def _asked(kernel: BatchKernel, policy: PolicyFunction, x: Array, t: float) -> Array:
    """The policy's proposals, in blocks of one size."""
    observed = kernel.evaluate("observation", x, np.full((len(x), 1), t))
    blocks = -(-len(x) // BLOCK)
    padded = np.zeros((blocks * BLOCK, observed.shape[1]), np.float32)
    padded[: len(x)] = observed
    answers = [np.asarray(policy(block), np.float64) for block in np.split(padded, blocks)]
    return np.concatenate(answers)[: len(x)]


class _Tally:
    """What is counted of each of B episodes, as arrays (B, ...)."""

    def __init__(self, case: Case, seeds: Sequence[int], drawn: NDArray[np.int64]) -> None:
        count = len(seeds)
        self.case, self.seeds, self.drawn = case, np.array(seeds), drawn
        self.returns, self.moved = np.zeros(count), np.zeros(count)
        self.squares = np.zeros((count, len(case.tracked)))
        self.worst, self.row = np.full(count, math.inf), np.zeros(count, np.int64)
        self.violations, self.changes, self.proposals = np.zeros((3, count), np.int64)
        self.verdicts = np.zeros((count, len(VERDICTS)), np.int64)
        self._last: NDArray[np.int8] | None = None

    def look(self, x: Array, reference: Array) -> None:
        """A true state (B, n) per episode."""
        rows = self.case.kernel.evaluate("safe_set", x)
        least = rows.min(axis=1)
        self.violations += ~(least >= 0.0)
        self.row = np.where(least < self.worst, rows.argmin(axis=1), self.row)
        self.worst = np.minimum(self.worst, least)
        axes = list(self.case.tracked.values())
        self.squares += (x[:, axes] - reference[axes]) ** 2

    def judged(self, proposed: Array, action: Array, verdict: NDArray[np.int8]) -> None:
        """One decision of the shield per episode."""
        there = np.isfinite(proposed).all(axis=1)
        move = (action[there] - proposed[there]) / self.case.input_scale
        self.moved[there] += np.linalg.norm(move, axis=1)
        self.proposals += there
        self.verdicts += verdict[:, None] == np.arange(len(VERDICTS))
        self.changes += 0 if self._last is None else verdict != self._last
        self._last = verdict


def _fly(
    case: Case, seeds: Sequence[int], propose: Propose, shielded: bool, starts: str
) -> _Tally:
    """The episodes of these seeds, side by side."""
    kernel = case.kernel
    path, drawn = _starts(case, seeds, STARTS[starts])
    tally = _Tally(case, seeds, drawn)
    times = case.period * np.arange(case.steps + 1)
    reference = kernel.evaluate("reference", times[:, None])
    tally.look(path[0], reference[0])
    for k in range(case.steps):
        proposed = propose(path[0], float(times[k]))
        if shielded:
            decided = kernel.decide(path[-1], proposed)
            action = decided.action
            tally.judged(proposed, action, decided.verdict)
        else:
            there = np.isfinite(proposed).all(axis=1, keepdims=True)
            clipped = np.clip(proposed, case.input_low, case.input_high)
            action = np.where(there, clipped, case.stop_action)
        path = [*path[1:], kernel.evaluate("step", path[-1], action)]
        t = np.full((len(action), 1), times[k] + case.period)
        tally.returns += kernel.evaluate("reward", path[0], action, t)[:, 0]
        tally.look(path[0], reference[k + 1])
    lost = tally.seeds[~np.isfinite(tally.returns)]
    if len(lost):
        raise ModelError(f"the flight of seed {lost[0]} ends in numbers that are not finite")
    return tally


def _starts(case: Case, seeds: Sequence[int], name: str) -> tuple[list[Array], NDArray[np.int64]]:
    """Per seed the first start drawn that has a way out, and how many were drawn for it.

    A start comes with the states to where the first own action acts: d + 1 arrays (B, n).
    """
    size = case.kernel.compiled.program.functions[name].inputs[0][1]
    rngs = [np.random.default_rng(seed) for seed in seeds]
    path = np.zeros((case.delay_steps + 1, len(seeds), case.kernel.n))
    drawn, left = np.zeros(len(seeds), np.int64), np.arange(len(seeds))
    while len(left):
        drawn[left] += 1
        if drawn.max() > MOST_DRAWS:
            raise ModelError(
                f"no start with a verified backup plan in {MOST_DRAWS} draws; lengthen the "
                "horizon, improve the backup policy or move the starts"
            )
        w = np.array([rngs[i].uniform(-1.0, 1.0, size) for i in left])
        way = [case.kernel.evaluate(name, w)]
        for _ in range(case.delay_steps):
            u = np.tile(case.stop_action, (len(left), 1))
            way.append(case.kernel.evaluate("step", way[-1], u))
        good = case.kernel.way_out(way[-1]) >= 0.0
        for x in way:  # a plan from x says nothing of x itself
            good &= (case.kernel.evaluate("safe_set", x) >= case.margin).all(axis=1)
        path[:, left[good]] = np.stack(way)[:, good]
        left = left[~good]
    return list(path), drawn


def _scores(case: Case, tallies: list[_Tally], shielded: bool) -> dict[str, Any]:
    def all_of(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(tally, name) for tally in tallies])

    returns, seeds, drawn, worst = map(all_of, ("returns", "seeds", "drawn", "worst"))
    total, safe = len(returns), all_of("violations") == 0
    steps, verdicts = total * case.steps, all_of("verdicts").sum(axis=0)
    moved = all_of("moved") / np.maximum(all_of("proposals"), 1)
    pooled = np.sqrt(all_of("squares").sum(axis=0) / (total * (case.steps + 1)))
    at = int(worst.argmin())
    return {
        "episodes": total,
        "steps": steps,
        "shielded": shielded,
        "unsafe_episodes": int((~safe).sum()),
        "unsafe_seeds": seeds[~safe][:100].tolist(),
        "safety_probability": float(safe.mean()),
        "safety_interval_95": list(wilson(int(safe.sum()), total)),
        "violations": int(all_of("violations").sum()),
        "worst_margin": float(worst[at]),
        "worst_row": case.rows[all_of("row")[at]],
        "worst_seed": int(seeds[at]),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(ddof=1)) if total > 1 else 0.0,
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "safe_return_mean": float(returns[safe].mean()) if safe.any() else None,
        "rmse": dict(zip(case.tracked, pooled.tolist(), strict=True)),
        "interventions": dict(zip(VERDICTS, verdicts.tolist(), strict=True)),
        "intervention_rate": float(1.0 - verdicts[PASSED] / steps) if shielded else 0.0,
        "fallback_rate": float(verdicts[BACKUP] / steps),
        "mean_intervention": float(moved.mean()),
        "chatter_per_s": float(all_of("changes").mean() / (case.steps * case.period)),
        "slack_variables": 0,
        "share_of_starts_rejected": float(1.0 - total / drawn.sum()),
    }


def _proposals(bundle: Bundle, asked: str | None) -> PolicyFunction | str:
    """What --policy names: one of NAMED, or a file, by default the bundle's own."""
    if asked in NAMED:
        return asked
    path = Path(asked) if asked else bundle.policy_path
    policy, notes = policy_function(path)
    for name, own in (("robot", bundle.robot), ("task", bundle.task.name)):
        if notes.get(name, own) != own:
            raise ModelError(f"{path} is for the {name} '{notes[name]}', the bundle's is '{own}'")
    return policy


def main() -> int:
    """0: shielded and safe, or unshielded; 1: a violation behind the shield; 2: an error."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rl_training.shielded_evaluation", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("bundle", type=Path, help="its folder")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--policy", help=f"a policy.onnx, or one of {', '.join(NAMED)}")
    parser.add_argument("--start", choices=STARTS, help="default: recoverable for adversarial")
    parser.add_argument("--no-shield", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores there")
    args = parser.parse_args()
    torch.set_num_threads(1)  # per thread that flies
    try:
        bundle = Bundle.load(args.bundle)
        start = args.start or ("recoverable" if args.policy == "adversarial" else "task")
        scores = evaluate_shielded(
            bundle, _proposals(bundle, args.policy), args.episodes, args.seed, args.threads,
            shielded=not args.no_shield, starts=start,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    except SafeRLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = {"command": shlex.join(sys.orig_argv[1:]), "bundle": bundle.name}
    text = json.dumps({**about, "bundle_hash": bundle.hash, "start": start, **scores}, indent=1)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n")
    print(text)
    return int(not args.no_shield and scores["unsafe_episodes"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
