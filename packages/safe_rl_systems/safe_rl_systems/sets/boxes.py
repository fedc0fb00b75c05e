"""Safe sets made of one-sided limits on single state components.

Row j of h(x) is  limit - x_i  ("upper") or  x_i - limit  ("lower"), in the unit of that state, so
that a row reads as the distance left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safe_rl_core.errors import ModelError
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One limit: `name`, the state component it bounds, `side` "upper" or "lower", the limit."""

    name: str
    index: int
    side: str
    limit: float

    def __post_init__(self) -> None:
        if self.side not in ("upper", "lower"):
            raise ModelError(
                f"row '{self.name}': side must be 'upper' or 'lower', got {self.side}"
            )


@dataclass(frozen=True)
class AffineSafeSet:
    """h(x) for a tuple of limits."""

    rows: tuple[Row, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The row names in the order of h."""
        return tuple(row.name for row in self.rows)

    def __call__(self, x: Tensor) -> Tensor:
        """h(x): (..., n) -> (..., rows); safe where every row is >= 0."""
        return torch.stack(
            [
                row.limit - x[..., row.index]
                if row.side == "upper"
                else x[..., row.index] - row.limit
                for row in self.rows
            ],
            -1,
        )


def symmetric(name: str, index: int, limit: float) -> tuple[Row, Row]:
    """abs(x_index) <= limit as two rows, named <name>_upper and <name>_lower."""
    return (
        Row(f"{name}_upper", index, "upper", limit),
        Row(f"{name}_lower", index, "lower", -limit),
    )
