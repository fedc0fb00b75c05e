"""The run-time half of safe_rl: programs, kernels, shield. No torch, no rclpy.

from safe_rl_core import Bundle, Shield
result = Shield(Bundle.load("models/quadrotor_powerloop")).step(x, u)
"""

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import SafeRLError
from safe_rl_core.policy import Policy
from safe_rl_core.shield import Reason, Shield, ShieldResult, Verdict

__all__ = ["Bundle", "Policy", "Reason", "SafeRLError", "Shield", "ShieldResult", "Verdict"]
