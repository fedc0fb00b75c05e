"""Base controllers and backup policies: what the shield falls back on."""

from safe_rl_systems.backup.cascade import CascadeBackup
from safe_rl_systems.backup.lqr import LinearFeedback, dlqr, hover_lqr, lane_lqr
from safe_rl_systems.backup.switched import SwitchedBackup

__all__ = [
    "CascadeBackup",
    "LinearFeedback",
    "SwitchedBackup",
    "dlqr",
    "hover_lqr",
    "lane_lqr",
]
