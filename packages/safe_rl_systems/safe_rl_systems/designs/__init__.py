"""Gains and shapes that were synthesised, one file per robot, with how they were made."""
