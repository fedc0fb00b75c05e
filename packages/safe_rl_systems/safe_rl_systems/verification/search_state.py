"""The state of a search over cells, kept in an .npz from which it can be taken up again.

The file is bound to its problem by a fingerprint; nothing in it is trusted further than that:
leaves that were stored are leaves that this program proved, and the checker proves them again.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Program

from safe_rl_systems.verification.base_problem import BaseProblem
from safe_rl_systems.verification.interval import Array

_TABLES = ("open_low", "open_high", "leaves_low", "leaves_high", "multipliers")


@dataclass
class SearchState:
    """Open cells (N, q), leaves (M, q) with multipliers (M, 1+q), and what it took so far."""

    open_low: Array
    open_high: Array
    leaves_low: Array
    leaves_high: Array
    multipliers: Array
    cells: int = 0
    seconds: float = 0.0

    @staticmethod
    def start(low: Array, high: Array) -> SearchState:
        """Everything is open."""
        q = low.shape[1]
        return SearchState(low, high, np.empty((0, q)), np.empty((0, q)), np.empty((0, 1 + q)))

    def add_leaves(self, low: Array, high: Array, multipliers: Array) -> None:
        """Append proved cells."""
        self.leaves_low = np.concatenate((self.leaves_low, low))
        self.leaves_high = np.concatenate((self.leaves_high, high))
        self.multipliers = np.concatenate((self.multipliers, multipliers))

    def save(self, path: Path, key: str) -> None:
        """Write to `path`, by way of a neighbour so that no half-written file is left."""
        tables = {name: getattr(self, name) for name in _TABLES}
        scratch = path.with_suffix(".part.npz")
        np.savez(
            scratch,
            fingerprint=np.frombuffer(bytes.fromhex(key), np.uint8),
            counts=np.array([self.cells, self.seconds]),
            **tables,
        )
        scratch.replace(path)

    @staticmethod
    def load(path: Path, key: str) -> SearchState | None:
        """The state in `path`; None if there is no file. Raises if it is another problem's."""
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                stored = archive["fingerprint"].tobytes().hex()
                cells, seconds = archive["counts"]
                tables = [np.asarray(archive[name], np.float64) for name in _TABLES]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CertificateError(f"{path} is no saved search: {error}; delete it") from error
        if stored != key:
            raise CertificateError(
                f"{path} belongs to another problem, program or setting; delete it to start anew"
            )
        return SearchState(*tables, int(cells), float(seconds))


def fingerprint(problem: BaseProblem, splits: tuple[int, ...], margin: float) -> str:
    """SHA-256 over the error map and every number that the result depends on.

    Of the program the search evaluates nothing else, so another backup policy or another task
    does not make it anew.
    """
    error_map = problem.program.functions["error_map"]
    layers = {ins.name for ins in error_map.instructions if ins.op == "dense"}
    weights = {k: v for k, v in problem.program.weights.items() if k.rpartition(".")[0] in layers}
    program = Program({"error_map": error_map}, weights)
    digest = hashlib.sha256(program.hash.encode())
    numbers = (
        problem.schedule, problem.input, problem.input_low, problem.input_high, problem.gain,
        problem.factor, problem.disturbance, problem.tracking_error, problem.cell_directions,
        np.array(problem.symmetries, float), np.array(splits, float), np.array([margin]),
    )  # fmt: skip
    for array in numbers:
        digest.update(str(np.shape(array)).encode())
        digest.update(np.ascontiguousarray(array, "<f8").tobytes())
    return digest.hexdigest()
