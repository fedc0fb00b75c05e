"""The certificate of a bundle: the assumptions, and the constants that were derived from them.

Plain data in two files: `certificate.json` for what a person reads, `certificate.npz` for the
tables. docs/theory.md defines every quantity; `safe-rl verify` writes them; a checker that shares
only the program with the generator derives them again (safe_rl_core/checker).

Sizes: n states, m inputs, k error channels, p schedule variables, C schedule cells, n_h safe rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_rl_core.errors import CertificateError

Array = NDArray[np.float64]

FORMAT = "safe_rl_certificate 1"
JSON_FILE, TABLES_FILE = "certificate.json", "certificate.npz"
#: What every check of a plan keeps for rounding (assumption A6).
EPS = 1e-9
#: Plans can be judged for bounds up to this multiple of the assumed ones: `remainder` holds for
#: disturbances so large.
SIGMA_MAX = 2.0
_TABLES = frozenset(
    ("remainder", "shift_remainder", "safe_remainder", "leaves_low", "leaves_high",
     "leaves_multipliers")
)  # fmt: skip


@dataclass(frozen=True)
class BaseCertificate:
    """The base set {e : |L' e| <= 1} about a base point, and why it is invariant.

    `input` u* (m,), `schedule` s* (p,), `gain` K_B (m, k), `factor` L (k, k). The proof bounds
    |f(e, K_B e)|_P <= contraction, the disturbance by disturbance_norm, the estimate error by
    estimate_norm; their sum is at most 1. It splits z = cell_directions e (q, k) into leaves
    (M, q) with multipliers (M, 1 + q); `symmetries` are the sign vectors (k + m + p,) used.
    """

    input: Array
    schedule: Array
    gain: Array
    factor: Array
    contraction: float
    disturbance_norm: float
    estimate_norm: float
    extent: Array
    cell_directions: Array
    cell_splits: Array
    leaves_low: Array
    leaves_high: Array
    leaves_multipliers: Array
    symmetries: Array


@dataclass(frozen=True)
class Certificate:
    """Assumptions A1 to A3 per error channel, the derived bounds, and the base certificate.

    Assumed, per period: `disturbance` (k,) bounds |x_{k+1} [-] F(x_k, u_k)|, whatever the cause,
    an input that switches up to `jitter` s late among them; `estimate_error` (k,) bounds
    |x [-] x_hat|; `delay_steps` periods from estimate to action.
    Derived: `prediction_error`, `tracking_error` (k,), `remainder` (C, k, d, d) with d = k+m+k,
    `shift_remainder` (k, 2k, 2k), `safe_remainder` (n_h, k, k), `sampling_margin` (n_h,).
    """

    program: str
    period: float
    delay_steps: int
    error_names: tuple[str, ...]
    error_units: tuple[str, ...]
    disturbance: Array
    estimate_error: Array
    jitter: float
    input_low: Array
    input_high: Array
    tracking_gain: Array
    error_domain: Array
    input_domain: Array
    state_low: Array
    state_high: Array
    schedule_low: Array
    schedule_high: Array
    schedule_cells: Array
    remainder_splits: Array
    remainder: Array
    shift_remainder: Array
    safe_remainder: Array
    prediction_error: Array
    tracking_error: Array
    sampling_margin: Array
    base: BaseCertificate
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write both files into a bundle's folder."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "base"}
        values |= {f"base_{f.name}": getattr(self.base, f.name) for f in fields(self.base)}
        tables = {key: values.pop(key) for key in list(values) if _is_table(key)}
        text = json.dumps(
            {"format": FORMAT} | {key: _plain(value) for key, value in values.items()}, indent=1
        )
        (folder / JSON_FILE).write_text(text + "\n")
        with (folder / TABLES_FILE).open("wb") as file:
            np.savez_compressed(file, **tables)

    @staticmethod
    def load(folder: Path) -> Certificate:
        """Read both files; CertificateError says what is missing or of the wrong shape."""
        try:
            data = json.loads((folder / JSON_FILE).read_text())
            with np.load(folder / TABLES_FILE, allow_pickle=False) as archive:
                data |= {name: archive[name] for name in archive.files}
        except (OSError, ValueError) as error:
            raise CertificateError(f"{folder}: the certificate cannot be read: {error}") from error
        if data.pop("format", None) != FORMAT:
            raise CertificateError(f"{folder / JSON_FILE}: expected format '{FORMAT}'")
        try:
            base = {
                f.name: _typed(f.type, data.pop(f"base_{f.name}")) for f in fields(BaseCertificate)
            }
            own = {f.name: _typed(f.type, data.pop(f.name)) for f in _own_fields()}
        except (KeyError, TypeError, ValueError) as error:
            raise CertificateError(f"{folder}: the certificate lacks or garbles {error}") from None
        if data:
            raise CertificateError(f"{folder}: the certificate has unknown entries {sorted(data)}")
        certificate = Certificate(base=BaseCertificate(**base), **own)
        _check_shapes(certificate, folder)
        return certificate


def _own_fields() -> list[Any]:
    return [f for f in fields(Certificate) if f.name != "base"]


def _is_table(key: str) -> bool:
    return key.removeprefix("base_") in _TABLES


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _typed(kind: Any, value: Any) -> Any:
    if kind == "Array":
        return np.asarray(value, np.float64)
    if kind == "tuple[str, ...]":
        return tuple(str(item) for item in value)
    return {"float": float, "int": int, "str": str}.get(kind, dict)(value)


def _check_shapes(c: Certificate, folder: Path) -> None:
    k, m, p = len(c.error_names), len(c.input_low), len(c.schedule_low)
    n, rows = len(c.state_low), len(c.sampling_margin)
    cells = int(np.prod(c.schedule_cells))
    d, q = 2 * k + m, len(c.base.cell_directions)
    leaves = len(c.base.leaves_low)
    expected = {
        "error_units": (len(c.error_units), k),
        **{
            name: (getattr(c, name).shape, (k,))
            for name in (
                "disturbance", "estimate_error", "error_domain", "prediction_error",
                "tracking_error",
            )
        },
        "input_high": (c.input_high.shape, (m,)),
        "input_domain": (c.input_domain.shape, (m,)),
        "tracking_gain": (c.tracking_gain.shape, (m, k)),
        "state_high": (c.state_high.shape, (n,)),
        "schedule_high": (c.schedule_high.shape, (p,)),
        "schedule_cells": (c.schedule_cells.shape, (p,)),
        "remainder": (c.remainder.shape, (cells, k, d, d)),
        "shift_remainder": (c.shift_remainder.shape, (k, 2 * k, 2 * k)),
        "safe_remainder": (c.safe_remainder.shape, (rows, k, k)),
        "base.input": (c.base.input.shape, (m,)),
        "base.schedule": (c.base.schedule.shape, (p,)),
        "base.gain": (c.base.gain.shape, (m, k)),
        "base.factor": (c.base.factor.shape, (k, k)),
        "base.extent": (c.base.extent.shape, (k,)),
        "base.cell_directions": (c.base.cell_directions.shape, (q, k)),
        "base.leaves_low": (c.base.leaves_low.shape, (leaves, q)),
        "base.leaves_high": (c.base.leaves_high.shape, (leaves, q)),
        "base.leaves_multipliers": (c.base.leaves_multipliers.shape, (leaves, 1 + q)),
    }  # fmt: skip
    for name, (got, wanted) in expected.items():
        if got != wanted:
            raise CertificateError(
                f"{folder}: certificate entry {name} has shape {got}, expected {wanted}; "
                "run safe-rl verify again"
            )
