"""A tracking gain under which as many plans as possible are VALID: a search, not a proof.

The certificate's tables do not depend on the tracking gain, so a certified bundle can be judged
with another gain without deriving anything again. The cross-entropy method scales the groups of
equal entries of the gain that is there (its pattern and signs stay) and maximises

    mean over states of 1 / (1 + exp(-slack / SOFTNESS))

over states drawn uniformly in the operating box from which the backup policy's plan holds without
any disturbance. `safe-rl verify` then certifies the bundle that is built with the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.certificate import Certificate
from safe_rl_core.errors import CertificateError
from safe_rl_core.kernel import Kernel
from safe_rl_core.kernel.robust import RobustKernel
from safe_rl_core.loop import operating_state

Array = NDArray[np.float64]
Tell = Callable[[str], None]

SOFTNESS = 1.0 / 30.0
POPULATION, ELITE, SPREAD, LEAST_SPREAD = 24, 6, 0.25, 0.02


@dataclass(frozen=True)
class Tuned:
    """`gain` (m, k), rounded to two digits after the point; plans that are VALID of `states`."""

    gain: Array
    valid: int
    before: int
    states: int


def tune(bundle: Bundle, states: int, generations: int, seed: int, tell: Tell) -> Tuned:
    """Search from the bundle's own gain; CertificateError for a bundle without certificate."""
    if bundle.robust is None:
        raise CertificateError(
            f"{bundle.name} has no certificate; run safe-rl verify {bundle.path} first"
        )
    rng = np.random.default_rng(seed)
    certificate, nominal = bundle.robust, bundle.kernel()
    tasks = _tasks(bundle, rng, states)
    scale = _scaling(certificate.tracking_gain)
    groups = len(np.unique(np.abs(certificate.tracking_gain))) - 1
    before = _score(bundle, nominal, certificate, tasks)[0]
    mean, spread = np.zeros(groups), np.full(groups, SPREAD)
    best = (-np.inf, before, mean)
    for generation in range(generations):
        drawn = mean + spread * rng.standard_normal((POPULATION, groups))
        drawn[0] = mean
        scores = []
        for sample in drawn:
            gain = np.round(scale(sample), 2)
            tried = replace(certificate, tracking_gain=gain)
            held, soft = _score(bundle, nominal, tried, tasks)
            scores.append(soft)
            if soft > best[0]:
                best = (soft, held, sample)
        elite = drawn[np.argsort(scores)[-ELITE:]]
        mean, spread = elite.mean(0), elite.std(0) + LEAST_SPREAD
        tell(f"generation {generation + 1}: {best[1]} of {states} plans hold, {before} before")
    return Tuned(np.round(scale(best[2]), 2), best[1], before, states)


def _tasks(bundle: Bundle, rng: np.random.Generator, states: int) -> list[tuple[Array, Array]]:
    """States and backup actions whose plan holds in an undisturbed world."""
    c = bundle.robust
    still = {
        name: 0.0 * getattr(c, name)
        for name in ("disturbance", "prediction_error", "tracking_error")
    }
    kernel = RobustKernel.of(replace(bundle, robust=replace(c, **still)))
    found: list[tuple[Array, Array]] = []
    while len(found) < states:
        x = operating_state(bundle, rng)
        u = bundle.compiled("backup_policy", x)
        if kernel.valid(x, u).holds:
            found.append((x, u))
    return found


def _scaling(gain: Array) -> Callable[[Array], Array]:
    """From logarithmic factors, one per group of equal sizes, to the scaled gain."""
    sizes, group = np.unique(np.abs(gain), return_inverse=True)
    group = group.reshape(gain.shape)
    if sizes[0] != 0.0:
        raise CertificateError("a tracking gain without any zero has no pattern to keep")
    return lambda factors: gain * np.concatenate(([1.0], np.exp(factors)))[group]


def _score(
    bundle: Bundle, nominal: Kernel, certificate: Certificate, tasks: list[tuple[Array, Array]]
) -> tuple[int, float]:
    """How many plans hold, and the soft count that is maximised."""
    kernel = RobustKernel(
        nominal,
        certificate,
        safe_names=bundle.safe_set_names,
        input_names=[channel.name for channel in bundle.inputs],
        input_scale=bundle.input_scale,
    )
    slack = np.array([kernel.valid(x, u).slack for x, u in tasks])
    slack = np.clip(np.nan_to_num(slack, nan=-1.0), -1.0, 1.0)
    return int((slack >= 0.0).sum()), float((1.0 / (1.0 + np.exp(-slack / SOFTNESS))).sum())


def main() -> None:
    """Command line: the gain as JSON on standard output."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle", help="name or folder of a certified bundle")
    parser.add_argument("--states", type=int, default=400)
    parser.add_argument("--generations", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = tune(
        Bundle.load(args.bundle), args.states, args.generations, args.seed,
        lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(json.dumps({"tracking_gain": found.gain.tolist()}, indent=1))


if __name__ == "__main__":
    main()
