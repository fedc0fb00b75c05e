"""The certificate checker: a program of its own, which shares only files with the generator.

It imports nothing that flies or derives certificates; of the package `program`, `ball` and `tape`.
"""

from safe_rl_core.checker.certificate_check import Finding, Report, check

__all__ = ["Finding", "Report", "check"]
