"""The auditor: derives a flight's per-step certificate again, trusting no code that flew.

    report = audit(chain_bytes, Path("models/quadrotor_robust"))

Its own reading of bundle and certificate, its own arithmetic. It shares with the robot the
program's interpreter and the layout of the chain, and imports neither shield, kernel nor
projection. `safe_rl_core.checker` proves the certificate itself, apart from any flight.
"""

from safe_rl_core.audit.report import Report, audit

__all__ = ["Report", "audit"]
