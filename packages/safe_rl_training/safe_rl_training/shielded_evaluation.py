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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safe_rl_core.adversary import Adversaries, WorstCorner
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import ModelError, SafeRLError
from safe_rl_core.kernel.batch import BatchKernel
from safe_rl_systems.robot import Robot

from safe_rl_training.parts.case import Case, case_of
from safe_rl_training.parts.policy_file import PolicyFunction, policy_function
from safe_rl_training.parts.start_path import start_path, startable
from safe_rl_training.parts.tally import Tally, tallied_scores

Array = NDArray[np.float64]
#: From true states (B, n) and the task time in s to proposals (B, m); nan: none.
Propose = Callable[[Array, float], Array]
NAMED = ("backup", "stop", "adversarial")
STARTS = {"task": "initial_state", "recoverable": "operating_state"}
BLOCK = 256
MOST_DRAWS = 100_000
SAY_EVERY_S = 5.0


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
    scores = tallied_scores(case, found, shielded)
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


def _source(case: Case, policy: PolicyFunction | str) -> Callable[[Sequence[int]], Propose]:
    """From the seeds of a batch to what is proposed in it."""
    if callable(policy):
        return lambda seeds: lambda x, t: _asked(case.kernel, policy, x, t)
    if policy == "adversarial":
        worst = WorstCorner(case, case.kernel.required, case.rest())
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


def _fly(case: Case, seeds: Sequence[int], propose: Propose, shielded: bool, starts: str) -> Tally:
    """The episodes of these seeds, side by side."""
    kernel = case.kernel
    path, drawn = _starts(case, seeds, STARTS[starts])
    tally = Tally(case, seeds, drawn)
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
        x = case.kernel.evaluate(name, w)
        way = start_path(case.kernel, x, case.stop_action, case.delay_steps)
        good = startable(case.kernel, way)
        path[:, left[good]] = way[:, good]
        left = left[~good]
    return list(path), drawn


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
