"""Safe sets S = {x : h(x) >= 0} and base sets B = {x : h_B(x) >= 0}; every row is named."""

from safe_rl_systems.sets.base import EllipsoidBaseSet, HoverBaseSet
from safe_rl_systems.sets.boxes import AffineSafeSet, Row

__all__ = ["AffineSafeSet", "EllipsoidBaseSet", "HoverBaseSet", "Row"]
