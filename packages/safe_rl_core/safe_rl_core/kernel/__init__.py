"""Program -> C -> shared library: the rollout with its sensitivities at the speed of the machine."""

from safe_rl_core.kernel.kernel import Compiled, Kernel, Rollout, Rows

__all__ = ["Compiled", "Kernel", "Rollout", "Rows"]
