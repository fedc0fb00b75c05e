"""What a certificate claims, read anew, and the tool that shows or refuses a claim.

`Claims` holds the entries of certificate.json and certificate.npz by their names, the program, and
bundle.yaml; `prove` shows a bound on a box by ball arithmetic over ever smaller boxes.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from flint import arb, arb_mat
from numpy.typing import NDArray

from safe_rl_core.audit.ball import Jet, constants, evaluate, square
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Program

Array = NDArray[np.float64]
#: "proved", "checked" or "refused", and why.
Verdict = tuple[str, str]
#: By which share of itself each of some claims is exceeded on a box; 0 where it is shown to hold.
Excess = Callable[[Array, Array], list[float]]
Claims = SimpleNamespace
ZERO = arb(0)
#: Shapes: k errors, m inputs, n states, p schedule variables, C cells, d = k+m+k, b = 2k, x = p+d,
#: h safe rows, q split directions, l = 1+q, M leaves, g symmetries, a = k+m+p.
_SHAPES_TEXT = """
period: delay_steps: jitter: disturbance:k estimate_error:k prediction_error:k tracking_error:k
error_domain:k input_domain:m input_low:m input_high:m state_low:n state_high:n schedule_low:p
schedule_high:p schedule_cells:p tracking_gain:mk remainder_splits:x remainder:Ckdd
shift_remainder:kbb safe_remainder:hkk sampling_margin:h base_contraction:
base_disturbance_norm: base_estimate_norm: base_extent:k base_input:m base_schedule:p
base_gain:mk base_factor:kk base_cell_directions:qk base_cell_splits:q base_leaves_low:Mq
base_leaves_high:Mq base_leaves_multipliers:Ml base_symmetries:ga
"""
_SHAPES = dict(item.split(":") for item in _SHAPES_TEXT.split())
_ANY_SIGN = ("_low", "_high", "gain", "_input", "base_schedule", "factor", "ions", "symmetries")


def read(folder: Path) -> Claims:
    """The claims in a bundle's folder; an error if they are not well-formed."""
    data = json.loads((folder / "certificate.json").read_text())
    with np.load(folder / "certificate.npz", allow_pickle=False) as archive:
        data |= {name: archive[name] for name in archive.files}
    c = Claims(**{name: np.asarray(data[name], np.float64) for name in _SHAPES})
    sizes: dict[str, int] = {}
    for name, letters in _SHAPES.items():
        value = getattr(c, name)
        if value.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size or (size == 0 and letter != "g")
            for letter, size in zip(letters, value.shape, strict=True)
        ):
            raise CertificateError(f"{name} has shape {value.shape}, which does not fit {sizes}")
        usable = np.isfinite(value) | (name in ("state_low", "state_high"))
        if not np.all(usable) or (not name.endswith(_ANY_SIGN) and np.any(value < 0.0)):
            raise CertificateError(f"{name} must be finite, and >= 0 where it is a bound")
    c.k, c.m, p, q = (sizes[letter] for letter in "kmpq")
    sums = {"d": 2 * c.k + c.m, "b": 2 * c.k, "l": 1 + q, "a": c.k + c.m + p}
    sums |= {"x": p + sums["d"], "C": int(np.prod(c.schedule_cells))}
    if any(sizes.get(letter, size) != size for letter, size in sums.items()):
        raise CertificateError(f"the sizes of the entries, {sizes}, must meet {sums}")
    for name in ("input", "schedule", "state", "base_leaves"):
        if not np.all(getattr(c, f"{name}_low") < getattr(c, f"{name}_high")):
            raise CertificateError(f"{name}_low must lie below {name}_high")
    c.program, c.hash = Program.load(folder / "program.txt"), data["program"]
    c.bundle = yaml.safe_load((folder / "bundle.yaml").read_text())
    c.entries = tuple(_SHAPES)
    return c


def agreement(c: Claims) -> Verdict:
    """The certificate speaks of this program, and assumes what bundle.yaml assumes."""
    if c.hash != c.program.hash:
        return "refused", f"certified for program {c.hash[:12]}, this is {c.program.hash[:12]}"
    given, inputs = c.bundle["assumptions"], c.bundle["inputs"]
    wanted = {name: value for name, value in given.items() if name in c.entries}
    wanted |= {f"base_{name}": value for name, value in given["base"].items()}
    wanted |= {"period": c.bundle["period_s"], "delay_steps": c.bundle["delay_steps"]}
    wanted |= {f"input_{end}": [u[end] for u in inputs] for end in ("low", "high")}
    wanted["estimate_error"] = [row["estimate_error"] for row in given["errors"]]
    wanted["jitter"] = given["jitter_s"]
    for name, value in wanted.items():
        if not np.array_equal(np.ravel(getattr(c, name)), np.ravel(np.array(value, float))):
            return "refused", f"{name} is {getattr(c, name)}, bundle.yaml has {value}"
    return "proved", f"equal to bundle.yaml: {', '.join(sorted(wanted))}"


def matrix(rows: Iterable[Iterable[Any]]) -> arb_mat:
    """Numbers or balls as a matrix of balls."""
    return arb_mat([[arb(x) for x in row] for row in rows])


def norm(entries: Iterable[arb]) -> arb:
    """Euclidean norm."""
    return sum((square(x) for x in entries), ZERO).sqrt()


def up(x: arb) -> float:
    """A float that is not below any number of the ball."""
    return float(np.nextafter(float(x.upper()), np.inf))


def balls(low: Array, high: Array) -> list[arb]:
    """The sides of a box."""
    return [arb(a).union(arb(b)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def jets(c: Claims, name: str, *inputs: Sequence[Jet]) -> list[Jet] | None:
    """The outputs of a function of the program; None if one of them is undecided."""
    outputs = evaluate(c.program, name, *inputs)
    return None if None in outputs else outputs


def values(c: Claims, name: str, *inputs: Iterable[Any]) -> list[arb]:
    """The outputs of a function at numbers or balls."""
    outputs = jets(c, name, *(constants(x) for x in inputs))
    if outputs is None:
        raise CertificateError(f"'{name}' has no decided value at a point of its domain")
    return [jet.value for jet in outputs]


def over(bound: arb, claim: float) -> float:
    """By which share the bound exceeds the claim; 0 only if all of the ball is at most it."""
    if bound <= arb(claim):
        return 0.0
    share = float(bound.upper()) / claim - 1.0 if claim > 0.0 else np.inf
    return max(share, 1e-15) if share == share else np.inf


def grid(low: Array, high: Array, splits: Array) -> Iterator[tuple[Array, Array]]:
    """A box in splits[i] equal parts along axis i, row-major; neighbours share their edges."""
    edges = [
        np.linspace(a, b, int(n) + 1) if n > 1 else np.array([a, b])
        for a, b, n in zip(low, high, splits, strict=True)
    ]
    lows = itertools.product(*(x[:-1] for x in edges))
    highs = itertools.product(*(x[1:] for x in edges))
    return ((np.array(a), np.array(b)) for a, b in zip(lows, highs, strict=True))


def halves(low: Array, high: Array, i: int, cut: float) -> list[tuple[Array, Array]]:
    """Both parts of a box cut across axis i."""
    left, right = high.copy(), low.copy()
    left[i] = right[i] = cut
    return [(low, left), (right, high)]


def prove(
    c: Claims,
    low: Array,
    high: Array,
    excess: Excess,
    group: Sequence[Array] = (),
    splits: Array | None = None,
    patience: float = np.inf,
) -> Verdict:
    """Show a claim on a box: in `splits` first, then the worst box is halved until none is left.

    `group`: sign vectors under which the claim is alike; of mirror images one part is enough. It
    is refused when a part exceeds it by more than the share `patience`, when it is false in
    the middle of a box, or when c.budget boxes did not suffice.
    """
    folds = _folds(low, high, group)
    queue: list[tuple[float, int, Array, Array]] = []
    count, gain, due = 0, np.zeros(len(low)), 0
    fresh = grid(low, high, np.ones(len(low)) if splits is None else splits)
    while True:
        for a, b in fresh:
            if np.any(b[folds] <= 0.0):
                continue
            count, worst = count + 1, max(excess(a, b), default=0.0)
            if worst > patience:
                return "refused", f"exceeded by {worst:.2%} on the parts it was derived on"
            if worst > 0.0:
                heapq.heappush(queue, (-worst, count, a, b))
        if not queue:
            return "proved", f"on {count} boxes"
        worst, _, a, b = heapq.heappop(queue)
        width = np.where(np.isfinite(b - a), b - a, 0.0)
        middle = np.where(width > 0.0, b - 0.5 * width, a)
        if count % 8 < 2 and (false := max(excess(middle, middle), default=0.0)) > 1e-9:
            return "refused", f"false: exceeded by {false:.2%} at {middle}"
        if count >= c.budget:
            return "refused", f"open after {count} boxes, exceeded by up to {-worst:.2%}"
        if count >= due:
            gain, due = _gain(a, b, width, excess), count + 20 * len(low)
        i = int(np.argmax(gain * width))
        fresh = halves(a, b, i, middle[i])


def _folds(low: Array, high: Array, group: Sequence[Array]) -> list[int]:
    """The variables whose negative half need not be looked at.

    Of a point and its images take the lexicographically largest. If g turns variable i first, then
    x_i >= -x_i there. Points with x_i = 0 are limits of others, and a bound holds in the limit.
    """
    own = [g for g in group if np.all((g > 0.0) | (low == -high))]
    return sorted({int(np.argmax(g < 0.0)) for g in own if np.any(g < 0.0)})


def _gain(low: Array, high: Array, width: Array, excess: Excess) -> Array:
    """How much the sum of the excesses shrinks per width of each variable."""
    gain, whole = np.zeros(len(low)), sum(excess(low, high))
    for i in np.flatnonzero(width):
        (_, a), (b, _) = halves(low, high, i, high[i] - 0.5 * width[i])
        less = whole - sum(excess(b, a))
        gain[i] = (less if 0.0 < less < np.inf else 1e-9) / width[i]
    return gain
