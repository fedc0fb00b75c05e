"""The certificate as robust.c reads it: a vector of numbers, and sparse second derivatives."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.certificate import EPS, Certificate
from safe_rl_core.errors import KernelError
from safe_rl_core.kernel.kernel import aligned, pointer

Array = NDArray[np.float64]
Indices = NDArray[np.int32]


class _Quadratic(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("start", "pair", "c")]


class Tables(ctypes.Structure):
    """The struct Tables of linear.c."""

    _fields_ = [
        ("pairs", ctypes.c_int64),
        ("cell_size", ctypes.c_int64),
        ("pair_a", ctypes.c_void_p),
        ("pair_b", ctypes.c_void_p),
        ("remainder", _Quadratic),
        ("safe_a", ctypes.c_void_p),
        ("safe_b", ctypes.c_void_p),
        ("safe", _Quadratic),
        ("shift", ctypes.c_void_p),
    ]


def bounds_vector(c: Certificate, input_scale: Array) -> Array:
    """The struct Bounds of linear.c as one vector."""
    extent = c.base.extent
    curvature = 0.5 * np.einsum("rab,a,b->r", c.safe_remainder, extent, extent)
    parts = (
        *(c.input_low, c.input_high, input_scale),
        *(c.schedule_low, c.schedule_high, c.schedule_cells, c.state_low, c.state_high),
        *(c.disturbance, c.prediction_error, c.tracking_error, c.error_domain, c.input_domain),
        *(c.tracking_gain, c.sampling_margin + EPS),
        *(c.base.input, c.base.schedule, extent, curvature),
        *(c.base.factor, _inverse(c.base.factor)),
    )
    return aligned(np.concatenate([np.ravel(part) for part in parts]))


def _inverse(factor: Array) -> Array:
    try:
        inverse = np.linalg.inv(factor)
    except np.linalg.LinAlgError:
        inverse = np.full_like(factor, np.nan)
    residual = np.max(np.abs(inverse @ factor - np.eye(len(factor))))
    if not residual <= EPS:
        raise KernelError(
            f"the base set's factor cannot be inverted to {EPS} (residual {residual:.1e}); "
            "choose a better conditioned base set"
        )
    return inverse


def sparse_tables(c: Certificate) -> tuple[Tables, list[NDArray[np.generic]]]:
    """The sparse second derivatives, and the arrays that must live as long as they are used."""
    k = len(c.error_names)
    start, a, b, remainder = _sparse(c.remainder)
    _, pairs = np.unique(a * c.remainder.shape[-1] + b, return_inverse=True)
    first = np.unique(pairs, return_index=True)[1]
    safe_start, safe_a, safe_b, safe = _sparse(c.safe_remainder[np.newaxis])
    shift = 0.5 * c.shift_remainder[:, k:, k:]
    kept: list[NDArray[np.generic]] = [
        *(_integers(x) for x in (a[first], b[first], start, pairs)),
        aligned(remainder),
        *(_integers(x) for x in (safe_a, safe_b, safe_start)),
        aligned(safe),
        aligned(shift),
    ]
    pair_a, pair_b, row, pair, table, s_a, s_b, s_start, s_table, shifts = map(pointer, kept)
    return Tables(
        pairs=len(first),
        cell_size=remainder.shape[1],
        pair_a=pair_a,
        pair_b=pair_b,
        remainder=_Quadratic(row, pair, table),
        safe_a=s_a,
        safe_b=s_b,
        safe=_Quadratic(s_start, None, s_table),
        shift=shifts,
    ), kept


def _sparse(table: Array) -> tuple[Indices, Indices, Indices, Array]:
    """Half the symmetric forms (C, rows, d, d) as their nonzero entries a <= b.

    Returns (first entry of each row, with the end), a, b, and the coefficients (C, entries).
    """
    upper = 0.5 * (table + np.swapaxes(table, -1, -2))
    upper = np.triu(upper, 1) + 0.5 * np.triu(np.tril(upper))
    row, a, b = np.nonzero(np.any(upper != 0.0, axis=0))
    start = np.searchsorted(row, np.arange(table.shape[1] + 1))
    return start.astype(np.int32), a, b, np.ascontiguousarray(upper[:, row, a, b])


def _integers(array: NDArray[np.generic]) -> Indices:
    return np.ascontiguousarray(array, np.int32)
