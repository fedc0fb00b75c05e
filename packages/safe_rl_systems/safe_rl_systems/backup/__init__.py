"""Base controllers and backup policies: what the shield falls back on."""

from safe_rl_systems.backup.cascade import CascadeBackup
from safe_rl_systems.backup.learned import (
    LearnedRecovery,
    load_backup,
    save_backup,
    with_backup,
)
from safe_rl_systems.backup.lqr import LinearFeedback, dlqr, hover_lqr, lane_lqr
from safe_rl_systems.backup.switched import SwitchedBackup

__all__ = [
    "CascadeBackup",
    "LearnedRecovery",
    "LinearFeedback",
    "SwitchedBackup",
    "dlqr",
    "hover_lqr",
    "lane_lqr",
    "load_backup",
    "save_backup",
    "with_backup",
]
