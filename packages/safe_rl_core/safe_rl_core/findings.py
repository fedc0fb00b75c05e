"""What the premise monitor says: status, proof, and the numbers behind them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Status(str, Enum):
    """What is known about the assumptions; BROKEN is a proof and stays until a person resets."""

    OK = "OK"
    WARN = "WARN"
    BROKEN = "BROKEN"


class Fault(str, Enum):
    """How an assumption was seen to fail."""

    NOT_FINITE = "not_finite"
    FROZEN = "frozen"
    JUMP = "jump"
    DRIFT = "drift"


@dataclass(frozen=True)
class Finding:
    """The proof: |observed| > bound in `channel` over `window` periods that end at `stamp_ns`.

    The guarantee is void from `void_from_ns` on. `premise`: which assumptions cannot all hold.
    """

    fault: Fault
    premise: str
    stamp_ns: int
    void_from_ns: int
    window: int
    channel: str
    unit: str
    observed: float
    bound: float

    def text(self) -> str:
        """One sentence for log and diagnostics."""
        since = f"guarantee void from {self.void_from_ns * 1e-9:.3f} s"
        if self.fault is Fault.NOT_FINITE:
            return f"{self.premise} broken: {self.channel} is {self.observed}; {since}"
        periods = "1 period" if self.window == 1 else f"{self.window} periods"
        return (
            f"{self.premise} broken ({self.fault.value}): {self.channel} is off by "
            f"{abs(self.observed):.3g} {self.unit} over {periods}, at most {self.bound:.3g} can "
            f"be explained; {since}"
        )


@dataclass(frozen=True)
class MonitorResult:
    """One period's answer; k error channels, rows of `ratios` (W, k) as monitor.WINDOWS.

    `ratios`: |residual| / bound, nan where not tested; the largest is `worst`, in channel
    `worst_channel` over `worst_window` periods (0: none tested). `disturbance` (k,): the residuals
    of the longest window leave room for disturbances of one period up to this, if A2 and A3 hold
    and to first order in how far they exceed the assumed ones; nan if unknown. `broken`: the first
    proof since the last reset. `estimate_usable`: False for a state that is not finite or frozen.
    `note`: one sentence, empty if all is well.
    """

    stamp_ns: int
    status: Status
    ratios: Array
    worst: float
    worst_window: int
    worst_channel: str
    disturbance: Array
    estimate_usable: bool
    broken: Finding | None
    note: str
