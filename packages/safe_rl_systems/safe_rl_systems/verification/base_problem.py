"""What has to be proved about a base set, and the parts of it that need no cells.

The base controller is u = u* + K (e + eta) around a base point with schedule s*; e is the error,
|eta_i| <= tracking_error_i what the measured error is off. With f(e, v) = error_map(s*, e, v, 0)
and |e|_P = |L'e|, the set {|e|_P <= 1} is invariant, without saturation, if

    B1   u* + K (e + eta) lies in the input box for every e in the set,
    B2   rho + omega + nu <= 1,   rho    >= |f(e, K e)|_P
                                  omega  >= |error_map(s*, e, v, w) - f(e, v)|_P,  v = K (e + eta)
                                  nu     >= |f(e, K (e + eta)) - f(e, K e)|_P

for every e in the set and every eta and w in their boxes. This module proves B1 and bounds omega
and nu; `base_set` bounds rho.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Program

from safe_rl_systems.verification.assumptions import Assumptions
from safe_rl_systems.verification.ellipsoid import Ellipsoid, worst_over_box
from safe_rl_systems.verification.interval import Array, Interval, down, point, up
from safe_rl_systems.verification.slopes import Box, slopes

#: How far a symmetry of the error map may be off in floats.
_SYMMETRY_TOLERANCE = 1e-9
_SYMMETRY_SAMPLES = 200


@dataclass(frozen=True)
class BaseProblem:
    """The claim: {|L'e| <= 1} is invariant under u* + K (e + eta) for every w, eta in the boxes.

    `program` has error_map(s, e, v, w) -> (k,); `schedule` s* (p), `input` u* (m), input box
    (m), `gain` K (m, k), `factor` L (k, k) lower triangular, `disturbance` and `tracking_error`
    (k). `cell_directions` C (q, k): the combinations z = C e that carry the nonlinearity and are
    split; they must be independent. `symmetries`: sign vectors (se, sv, ss) of length k + m + p
    with error_map(ss s, se e, sv v, se w) = se error_map(s, e, v, w).
    """

    program: Program
    schedule: Array
    input: Array
    input_low: Array
    input_high: Array
    gain: Array
    factor: Array
    disturbance: Array
    tracking_error: Array
    cell_directions: Array
    symmetries: tuple[tuple[int, ...], ...] = ()
    ellipsoid: Ellipsoid = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        k, m = len(self.factor), len(self.input)
        q = len(self.cell_directions)
        expected = {
            "input_low": (m,),
            "input_high": (m,),
            "gain": (m, k),
            "disturbance": (k,),
            "tracking_error": (k,),
            "cell_directions": (q, k),
        }
        for name, shape in expected.items():
            got = np.shape(getattr(self, name))
            if got != shape:
                raise CertificateError(f"BaseProblem.{name} must have shape {shape}, got {got}")
        if q == 0 or np.linalg.matrix_rank(self.cell_directions) < q:
            raise CertificateError("cell_directions must be independent rows, at least one")
        if np.any(self.disturbance < 0.0) or np.any(self.tracking_error < 0.0):
            raise CertificateError("disturbance and tracking_error are bounds: they must be >= 0")
        object.__setattr__(self, "ellipsoid", Ellipsoid(self.factor))
        for signs in self.symmetries:
            _check_symmetry(self, np.array(signs, float))

    @staticmethod
    def stated(
        program: Program, assumed: Mapping[str, Any], given: Assumptions, tracking_error: Array
    ) -> BaseProblem:
        """The claim of a bundle's entry `assumptions`, which `given` was read from."""
        base = assumed["base"]
        gain, factor, directions, schedule, rest = (
            np.array(base[name], np.float64)
            for name in ("gain", "factor", "cell_directions", "schedule", "input")
        )
        return BaseProblem(
            program=program,
            schedule=schedule,
            input=rest,
            input_low=given.input_low,
            input_high=given.input_high,
            gain=gain,
            factor=factor,
            disturbance=given.disturbance,
            tracking_error=tracking_error,
            cell_directions=directions,
            symmetries=tuple(tuple(int(s) for s in row) for row in base["symmetries"]),
        )

    @property
    def extent(self) -> Array:
        """At least the largest |e_i| over the set."""
        return self.ellipsoid.reach(np.eye(len(self.factor)))

    @property
    def reserve(self) -> Array:
        """At least |K| tracking_error: how far the input is off by the measured error."""
        return (abs(point(self.gain)) @ point(self.tracking_error)).high

    @property
    def drive(self) -> Array:
        """At least the largest |K_j e| over the set."""
        return self.ellipsoid.reach(self.gain)

    @property
    def cell_reach(self) -> Array:
        """At least the largest |z_i| over the set."""
        return self.ellipsoid.reach(self.cell_directions)

    @property
    def volume(self) -> float:
        """Volume of the set, in the product of the error units (not enclosed)."""
        k = len(self.factor)
        gamma = np.prod([2.0 * np.pi / i for i in range(k, 1, -2)]) * (2.0 if k % 2 else 1.0)
        return float(gamma / np.prod(np.diag(self.factor)))

    def scaled(self, level: float) -> BaseProblem:
        """The same shape at another level: {|L'e|² <= level}."""
        return replace(self, factor=self.factor / np.sqrt(level))

    def input_slack(self) -> Array:
        """B1 in units of the input: what is left to the nearer bound, (m,); proved if >= 0."""
        used = up(self.drive + self.reserve)
        below = down(down(self.input - self.input_low) - used)
        return np.minimum(below, down(down(self.input_high - self.input) - used))

    def ranges(self, low: Array, high: Array) -> tuple[Interval, Interval]:
        """e (N, k) and K e (N, m) over cells of z = C e: the whole set, cut where C says so.

        A component is cut by the cell if its row of I or K is a row of C.
        """
        rows = self._rows
        reach = np.concatenate((self.extent, self.drive))
        least = np.tile(-reach, (len(low), 1))
        most = np.tile(reach, (len(low), 1))
        for i, direction in enumerate(self.cell_directions):
            for r in np.flatnonzero((rows == direction).all(1)):
                least[:, r] = np.clip(low[:, i], -reach[r], reach[r])
                most[:, r] = np.clip(high[:, i], -reach[r], reach[r])
        k = len(self.factor)
        return Interval(least[:, :k], most[:, :k]), Interval(least[:, k:], most[:, k:])

    @property
    def split_components(self) -> NDArray[np.int_]:
        """Which components of (e, K e) are directions of the cells: known to their width."""
        rows = self._rows
        same = [(rows == direction).all(1) for direction in self.cell_directions]
        return np.flatnonzero(np.any(same, axis=0))

    @property
    def _rows(self) -> Array:
        return np.vstack((np.eye(len(self.factor)), self.gain))

    def perturbation_norms(self, low: Array, high: Array) -> tuple[Array, Array]:
        """(omega, nu) over each cell (N,): slopes to w and to K eta, between any two points."""
        e, v = self.ranges(low, high)
        k, m = len(self.factor), len(self.input)
        noisy = v + Interval(-self.reserve, self.reserve)
        zero = np.zeros(k)
        w_box = Interval(-self.disturbance, self.disturbance).broadcast_to(e.shape)
        _, to_w = slopes(
            self.program, "error_map", {"s": self.schedule, "e": e, "v": noisy}, [Box("w", w_box)]
        )
        omega = worst_over_box(self.ellipsoid.to_ball(to_w), self.disturbance)
        moved = Box("v", noisy, v)
        fixed = {"s": self.schedule, "e": e, "w": zero}
        _, to_v = slopes(self.program, "error_map", fixed, [moved])
        through = self.ellipsoid.to_ball(to_v)[..., :m] @ point(self.gain)
        return omega, worst_over_box(through, self.tracking_error)


def _check_symmetry(problem: BaseProblem, signs: Array) -> None:
    """K, P, C and u*, s* respect the signs exactly; the error map does so on samples."""
    k, m = len(problem.factor), len(problem.input)
    size = k + m + len(problem.schedule)
    if signs.shape != (size,) or not np.all(np.abs(signs) == 1.0):
        raise CertificateError(f"a symmetry must be {size} signs (e, v, s), got {signs.tolist()}")
    se, sv, ss = signs[:k], signs[k : k + m], signs[k + m :]
    cells = problem.cell_directions
    exact = {
        "K": np.array_equal(sv[:, None] * problem.gain, problem.gain * se),
        "L": not np.any(problem.factor[se[:, None] != se]),
        "s*": np.array_equal(ss * problem.schedule, problem.schedule),
        "C": all(len(set(se[row != 0.0])) == 1 for row in cells),
    }
    broken = [name for name, holds in exact.items() if not holds]
    if broken:
        raise CertificateError(f"{' and '.join(broken)} do not respect the symmetry {signs}")
    rng = np.random.default_rng(0)
    y = rng.normal(size=(_SYMMETRY_SAMPLES, k))
    y *= rng.random((len(y), 1)) / np.linalg.norm(y, axis=1, keepdims=True)
    e = np.linalg.solve(problem.factor.T, y.T).T
    w = rng.uniform(-1.0, 1.0, e.shape) * problem.disturbance
    v = e @ problem.gain.T
    s = np.broadcast_to(problem.schedule, (len(e), len(ss)))
    here = problem.program("error_map", s, e, v, w) * se
    there = problem.program("error_map", s * ss, e * se, v * sv, w * se)
    both = np.isfinite(here) & np.isfinite(there)
    gap = np.abs(np.where(both, here - there, 0.0)).max()
    if gap > _SYMMETRY_TOLERANCE:
        raise CertificateError(
            f"error_map does not commute with the signs {signs.astype(int).tolist()}: it is off "
            f"by {gap:.3g}; remove the symmetry or correct the program"
        )
