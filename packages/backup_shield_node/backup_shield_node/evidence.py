"""What a robust shield leaves behind of each answer: the signed record, and the premise test.

All of it happens after the command is out. A record that cannot be written is counted, never
waited for. Once the estimates prove that an assumption is broken, `decide` obeys the response
ladder (safe_rl_core/response.py) until a person resets (deactivate, activate).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safe_rl_core.bundle import Bundle
from safe_rl_core.chain import ChainError, ChainWriter, header_of
from safe_rl_core.findings import MonitorResult
from safe_rl_core.monitor import PremiseMonitor
from safe_rl_core.response import Decision, Response
from safe_rl_core.robust_shield import RobustShield, record_of
from safe_rl_core.shield import Reason, ShieldResult
from std_msgs.msg import UInt8MultiArray

Array = NDArray[np.float64]

KEY_BYTES = 32


class Evidence:
    """Record and monitor of one flight with a robust bundle."""

    def __init__(
        self,
        bundle: Bundle,
        shield: RobustShield,
        publish: Callable[[UInt8MultiArray], None],
        count: Callable[[str, str], None],
        key: bytes | None,
    ) -> None:
        self._shield, self._publish, self._count = shield, publish, count
        self._writer = ChainWriter(header_of(bundle, "stamp of the state"), key)
        self._monitor, self._response = PremiseMonitor(bundle), Response(bundle)
        self._message = UInt8MultiArray()
        self._may: Decision | None = None  # nothing judged yet: all may pass
        self.sigma = math.nan
        self.premises: MonitorResult | None = None

    def decide(self, x: Array, proposal: Array | None) -> ShieldResult:
        """The shield's answer, with what the premises still allow."""
        may = self._may
        if may is None or may.proposals:
            return self._shield.step(x, proposal)
        if may.stop:
            return self._shield.stop(x)
        if may.new_plans:
            self._shield.require(may.scale)
            return self._shield.step(x, None)
        return self._shield.continue_plan(x if may.tracking else None)

    def keep(self, stamp_ns: int, result: ShieldResult) -> None:
        """Record the answer and judge the estimate it was made from."""
        decision = result.decision
        self.sigma = self._shield.sigma()
        self._send(self._writer.append(record_of(stamp_ns, result, self.sigma)))
        if decision.x_hat is None:
            self._monitor.restart()
            return
        before = self.premises
        self.premises = self._monitor.update(stamp_ns, decision.x_hat, decision.u_in_force)
        if self.premises.broken is not None and (before is None or before.broken is None):
            self._count("premise_broken", self.premises.broken.text())
        covered = decision.index >= 0 and result.reason is not Reason.NO_PLAN_YET
        sigma = self.sigma
        if decision.index >= self._shield.bundle.horizon:
            sigma = min(sigma, 1.0)  # behind the plan stands the base set, certified as assumed
        self._may = self._response.update(self.premises, sigma, covered)

    def close(self) -> None:
        """The chain's last bytes, without which it counts as cut off."""
        self._send(self._writer.close())

    def _send(self, data: bytes | None) -> None:
        if data is None:
            self._count("record_fault", self._writer.last_fault)
            return
        self._message.data = array("B", data)
        self._publish(self._message)


def read_key(path: str) -> bytes | None:
    """The Ed25519 seed in a file of 64 hex digits; None for "" (a key of this flight alone)."""
    if not path:
        return None
    try:
        key = bytes.fromhex(Path(path).read_text().strip())
    except (OSError, ValueError) as error:
        raise ChainError(f"parameter signing_key: {path} cannot be read as hex: {error}") from None
    if len(key) != KEY_BYTES:
        raise ChainError(
            f"parameter signing_key: {path} holds {len(key)} bytes, expected {KEY_BYTES}; "
            f"make one with: python3 -c 'import secrets; print(secrets.token_hex({KEY_BYTES}))'"
        )
    return key
