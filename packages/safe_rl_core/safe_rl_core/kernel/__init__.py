"""Program -> C -> shared library: the rollout with its sensitivities, fast."""

from safe_rl_core.kernel.kernel import Compiled, Kernel, Rollout, Rows, theorem_vector

__all__ = ["Compiled", "Kernel", "Rollout", "Rows", "theorem_vector"]
