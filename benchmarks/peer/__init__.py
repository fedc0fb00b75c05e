"""The same rollout, the same rows and the same projection by other means."""
