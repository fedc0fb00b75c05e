"""The node that runs a bundle's policy."""

import safe_rl_ros  # noqa: F401  must come before any message: it turns their field checks on
