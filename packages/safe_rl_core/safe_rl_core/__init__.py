"""The run-time half of safe_rl: programs, kernels, shield. No torch, no rclpy.

    from safe_rl_core import Bundle, make_shield
    result = make_shield(Bundle.load("models/quadrotor_robust")).step(x, u)

The names below are loaded when they are first used, so that a launch file can import the package
without the solver and the inference runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rl_core.bundle import Bundle
    from safe_rl_core.errors import SafeRLError
    from safe_rl_core.policy import Policy
    from safe_rl_core.robust_shield import RobustShield, make_shield
    from safe_rl_core.shield import Reason, Shield, ShieldResult, Verdict

__all__ = [
    "Bundle",
    "Policy",
    "Reason",
    "RobustShield",
    "SafeRLError",
    "Shield",
    "ShieldResult",
    "Verdict",
    "make_shield",
]

_HOMES = {
    "Bundle": "bundle",
    "Policy": "policy",
    "Reason": "shield",
    "RobustShield": "robust_shield",
    "SafeRLError": "errors",
    "Shield": "shield",
    "ShieldResult": "shield",
    "Verdict": "shield",
    "make_shield": "robust_shield",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'safe_rl_core' has no attribute '{name}'")
    return getattr(import_module(f"safe_rl_core.{_HOMES[name]}"), name)
