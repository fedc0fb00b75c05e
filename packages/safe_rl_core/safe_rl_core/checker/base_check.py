"""The base set {e : |L'e| <= 1} of a certificate, shown again to be invariant.

With y = L'e, f(e, v) = error_map(s*, e, v, 0) and |e|_P = |L'e|, for every e of the set, measured
error eta and disturbance w:

    contraction >= |f(e, K e)|_P         disturbance_norm >= |error_map(s*, e, v, w) - f(e, v)|_P
    estimate_norm >= |f(e, K (e + eta)) - f(e, K e)|_P                         v = K (e + eta)

The first is shown leaf by leaf, a leaf being a box of z = C e.
"""

from __future__ import annotations

import itertools

import numpy as np
from flint import arb, arb_mat

from safe_rl_core.ball import ZERO, Array, balls, constants, matrix, norm, seeds, slope_seeds, up
from safe_rl_core.checker.boxes import Verdict, halves, over, prove
from safe_rl_core.checker.claims import Claims, jets
from safe_rl_core.errors import CertificateError
from safe_rl_core.tape import Tape

Slopes = tuple[list[arb], list[list[arb]], list[arb]]
LEAVES = 200  # in one piece of work
_BARE = 40  # halvings of a box that no leaf meets, until it must lie outside of the set


def prepare(c: Claims) -> None:
    """Add to the claims what every check of the base set uses."""
    inverse = matrix(c.base_factor).inv().transpose()
    c.rows = np.vstack((np.eye(c.k), c.base_gain))
    c.group = _group(c)
    c.cut = [any(np.array_equal(a, b) for b in c.base_cell_directions) for a in c.rows]
    c.factor, c.sizes = matrix(c.base_factor.T), matrix(np.abs(c.base_factor.T))
    c.in_ball, c.slabs = matrix(c.rows) * inverse, matrix(c.base_cell_directions) * inverse
    c.reach = np.array([up(norm(row)) for row in c.in_ball.tolist()])  # of (e, K e) on the set
    c.reserve = np.array([up(x) for x in _reach(c.base_gain, c.tracking_error)])
    c.root = np.maximum(np.abs(c.base_leaves_low), np.abs(c.base_leaves_high)).max(0)
    c.shadow, c.at_rest = _shadow(c), constants(c.base_schedule)
    c.tapes |= {name: Tape(c.program, "error_map") for name in ("alone", "joined")}


def _shadow(c: Claims) -> arb_mat:
    """F' with |F'z| <= 1 for every z = C e of the set: a box beyond needs no leaf.

    F F' is the inverse of C P⁻¹ C' in floats, a little smaller; what it has to do is proved.
    """
    slabs = np.array([[float(x) for x in row] for row in c.slabs.tolist()])
    root = np.linalg.cholesky(np.linalg.inv(slabs @ slabs.T)) * (1.0 - 1e-9)
    moved = matrix(root.T) * c.slabs
    if not _positive((matrix(np.eye(c.k)) - moved.transpose() * moved).tolist()):
        raise CertificateError("the base set's extent along cell_directions cannot be enclosed")
    return matrix(root.T)


def _outside(c: Claims, low: Array, high: Array) -> bool:
    """True only if no point of the set has its z in the box."""
    return norm((c.shadow * arb_mat([[x] for x in balls(low, high)])).entries()) > 1


def _positive(m: list[list[arb]]) -> bool:
    """True only if every symmetric matrix in m is positive definite; m is overwritten."""
    for j in range(len(m)):
        if not m[j][j] > 0:
            return False
        for i in range(j + 1, len(m)):
            share = m[i][j] / m[j][j]
            for n in range(j + 1, i + 1):
                m[i][n] -= share * m[n][j]
    return True


def inputs(c: Claims) -> Verdict:
    """u* + K (e + eta) stays in the input box; the extent is right; the three norms fit."""
    ends = zip(c.in_ball.tolist()[: c.k], c.base_extent.tolist(), strict=True)
    if not all(norm(row) <= end for row, end in ends):
        return "refused", f"the set reaches {c.reach[: c.k]}, not {c.base_extent}"
    used = c.reach[c.k :] + c.reserve * (1.0 + 1e-12)
    for rest, need, low, high in zip(c.base_input, used, c.input_low, c.input_high, strict=True):
        if not (arb(rest) - need >= low and arb(rest) + need <= high):
            return "refused", f"an input needs {rest} +- {need}, its box is [{low}, {high}]"
    norms = c.base_contraction, c.base_disturbance_norm, c.base_estimate_norm
    if not sum(constants(map(float, norms)), ZERO) <= 1:
        return "refused", "contraction + disturbance_norm + estimate_norm exceeds 1"
    return "proved", f"the inputs need {used} about u*"


def _cell(c: Claims, low: Array, high: Array) -> tuple[Array, Array]:
    """The ends of e and K e, in one, over the part of the set in a box of z = C e."""
    least, most = -c.reach, c.reach.copy()
    for row, a, b in zip(c.base_cell_directions, low, high, strict=True):
        same = (c.rows == row).all(1)
        least[same], most[same] = np.maximum(least[same], a), np.minimum(most[same], b)
    return least, most


def _rest(c: Claims, slopes: list[list[arb]], reach: list[arb]) -> arb:
    """Norm of what the radii of the slopes can move, over |y| <= reach."""
    radii = arb_mat([[x.rad() for x in row] for row in slopes])
    return norm((c.sizes * (radii * arb_mat([[x.abs_upper()] for x in reach]))).entries())


def _reach(through: Array, size: Array) -> list[arb]:
    """sup |through x| over |x| <= size, row by row."""
    return (matrix(np.abs(through)) * matrix(size[:, None])).entries()


def _corners(through: Array, size: Array) -> arb_mat:
    """Columns that with their opposites span {through x : |x| <= size}.

    A convex even function is largest in one of them.
    """
    if np.all(np.count_nonzero(through, axis=0) <= 1):  # it is a box, with fewer corners
        size = np.array([up(x) for x in _reach(through, size)])
        through = np.eye(len(size))
    signs = np.array([(1.0, *s) for s in itertools.product((-1.0, 1.0), repeat=len(size) - 1)])
    return matrix(through) * matrix(signs.T * size[:, None])


def perturbation(c: Claims, source: str) -> Verdict:
    """disturbance_norm (source "w") or estimate_norm (source "eta")."""
    disturbed = source == "w"
    size = c.disturbance if disturbed else c.tracking_error
    claim = float(c.base_disturbance_norm if disturbed else c.base_estimate_norm)
    through = np.eye(c.k) if disturbed else c.base_gain
    reach, ends = _reach(through, size), _corners(through, size)
    more = np.r_[np.zeros(c.k), c.reserve]

    def excess(a: Array, b: Array) -> list[float]:
        if _outside(c, a, b):
            return []
        sides = balls(*_cell(c, a, b), more)
        e, v = sides[: c.k], sides[c.k :]
        if disturbed:
            outputs = jets(c, "error_map", c.at_rest, e, v, seeds(balls(-size, size), 0, 1))
        else:
            outputs = jets(c, "error_map", c.at_rest, e, seeds(v, 0, 1), [ZERO] * c.k)
        if outputs is None:
            return [np.inf]
        slopes = [[jet.grad.get(i, ZERO) for i in range(len(reach))] for jet in outputs]
        moves = c.factor * arb_mat([[x.mid() for x in row] for row in slopes]) * ends
        worst = max(norm(column).upper() for column in moves.transpose().tolist())
        return [over(worst + _rest(c, slopes, reach), claim)]

    return prove(c.budget, -c.root, c.root, excess, _images(c))


def leaves(c: Claims, first: int) -> Verdict:
    """|f(e, K e)|_P <= contraction on some leaves, by the multipliers of each."""
    for i in range(first, min(first + LEAVES, len(c.base_leaves_low))):
        if not _contracts(c, i):
            return "refused", f"leaf {i} does not show the contraction"
    return "proved", f"{len(c.base_leaves_low)} leaves"


def _contracts(c: Claims, leaf: int) -> bool:
    """f = f(0) + S (e, K e) with slopes S; A = L' mid(S) (I; K) L⁻ᵀ, so |f|_P <= |A y| + rest.

    With l0, lam_i >= 0 the sum l0 (1 - |y|²) + sum lam_i (h_i² - (c_i'y - z_i)²) is >= 0 on the
    set and the leaf |c_i'y - z_i| <= h_i; t - |A y|² minus it is (y, 1)' M (y, 1). So M > 0 shows
    |A y|² <= t.
    """
    low, high = c.base_leaves_low[leaf], c.base_leaves_high[leaf]
    outputs = _slopes(c, low, high)
    if outputs is None:
        return False
    centre, slopes, reach = outputs
    start = c.sizes * arb_mat([[x.abs_upper()] for x in centre])
    room = arb(float(c.base_contraction)) - norm(start.entries()) - _rest(c, slopes, reach)
    if not room > 0:
        return False
    a = c.factor * arb_mat([[x.mid() for x in row] for row in slopes]) * c.in_ball
    l0, *weights = constants(c.base_leaves_multipliers[leaf].tolist())
    ends = list(zip(constants(low.tolist()), constants(high.tolist()), strict=True))
    slabs = [[*row, -(x + y) / 2] for row, (x, y) in zip(c.slabs.tolist(), ends, strict=True)]
    weighted = [[w * x for x in row] for w, row in zip(weights, slabs, strict=True)]
    wide = arb_mat([[*row, ZERO] for row in a.tolist()])
    m = (arb_mat(slabs).transpose() * arb_mat(weighted) - wide.transpose() * wide).tolist()
    for i in range(c.k):
        m[i][i] += l0
    gaps = (w * ((y - x) / 2) ** 2 for w, (x, y) in zip(weights, ends, strict=True))
    m[c.k][c.k] += room * room - l0 - sum(gaps, ZERO)
    return _positive(m)


def _slopes(c: Claims, low: Array, high: Array) -> Slopes | None:
    """f(0), slopes S and the ranges of (e, K e) on a leaf; None if something is undecided.

    f(n, m) - f(0, 0) = [f(n, 0) - f(0, 0)] + [f(n, m) - f(n, 0)] with n the components that the
    leaf cuts and m the others, which stay wide: so they do not blur the slopes to n.
    """
    sides, zero = balls(*_cell(c, low, high)), [ZERO] * len(c.rows)
    scale = [up(abs(x)) for x in sides]  # a width counts by what it can move
    free = slope_seeds(sides, scale)
    first = [y if cut else x for cut, x, y in zip(c.cut, zero, free, strict=True)]
    second = [x if cut else y for cut, x, y in zip(c.cut, sides, free, strict=True)]
    alone = jets(c, "alone", c.at_rest, first[: c.k], first[c.k :], zero[: c.k])
    joined = jets(c, "joined", c.at_rest, second[: c.k], second[c.k :], zero[: c.k])
    if alone is None or joined is None:
        return None
    slopes = [
        [(a if cut else b).grad.get(i, ZERO) / arb(scale[i]) for i, cut in enumerate(c.cut)]
        for a, b in zip(alone, joined, strict=True)
    ]
    return [jet.centre for jet in alone], slopes, sides


def _group(c: Claims) -> list[Array]:
    """All products of the symmetries, as signs of (e, v, s)."""
    if np.any(np.abs(c.base_symmetries) != 1.0):
        raise CertificateError("base_symmetries must hold signs")
    group = {(1.0,) * (c.k + c.m + len(c.base_schedule))}
    for signs in c.base_symmetries:
        group |= {tuple((signs * g).tolist()) for g in group}
    return [np.array(g) for g in sorted(group)]


def _images(c: Claims) -> list[Array]:
    """The signs that the symmetries give to z = C e; CertificateError if the set breaks one."""
    images = []
    for signs in c.group:
        e, v, s = signs[: c.k], signs[c.k : c.k + c.m], signs[c.k + c.m :]
        kept = (c.base_cell_directions * e == c.base_cell_directions).all(1)
        image = np.where(kept, 1.0, -1.0)
        pairs = (v, c.base_gain), (e, c.base_factor), (image, c.base_cell_directions)
        if any(np.any(a[:, None] * x != x * e) for a, x in pairs) or np.any(
            s * c.base_schedule != c.base_schedule
        ):
            raise CertificateError(f"the base set does not have the symmetry {signs}")
        images.append(image)
    return images


def cover(c: Claims) -> Verdict:
    """Every z of the set lies in a leaf or in a mirror image of one."""
    ends = [(g * c.base_leaves_low, g * c.base_leaves_high) for g in _images(c)]
    lows = np.concatenate([np.minimum(a, b) for a, b in ends])
    highs = np.concatenate([np.maximum(a, b) for a, b in ends])
    if not all(norm(row) <= arb(x) for row, x in zip(c.slabs.tolist(), c.root, strict=True)):
        return "refused", "the leaves do not reach the ends of the base set"
    queue, count = [(-c.root, c.root, np.arange(len(lows)), 0)], 0
    while queue:
        low, high, near, bare = queue.pop()
        count, middle = count + 1, 0.5 * (low + high)
        near = near[((lows[near] < high) & (highs[near] > low)).all(1)]
        covered = ((lows[near] <= low) & (highs[near] >= high)).all(1).any()
        if covered or _outside(c, low, high):
            continue
        if len(near):  # cut where the face of a leaf is closest to the middle
            faces = np.concatenate((lows[near], highs[near]))
            inside = (faces > low) & (faces < high)
            away = np.where(inside, np.abs(faces - middle) / c.root, np.inf)
            at, i = np.unravel_index(int(np.argmin(away)), away.shape)
            cut, bare = faces[at, i], 0
        else:
            i, bare = int(np.argmax((high - low) / c.root)), bare + 1
            cut = middle[i]
        if bare > _BARE:
            return "refused", f"no leaf covers z = {middle}"
        queue += [(a, b, near, bare) for a, b in halves(low, high, i, cut)]
    return "proved", f"{len(lows)} leaves with their images, in {count} boxes"
