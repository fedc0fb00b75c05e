"""The node that stands between every policy and the vehicle."""

import safe_rl_ros  # noqa: F401  must come before any message: it turns their field checks on
