"""Robots as plain torch functions, and how they become programs and bundles."""
