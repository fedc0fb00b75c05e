"""What the nodes share: conversion of messages, QoS, the node base, the recorder."""

import os

# Read by every message module when it is imported: with it, an int or a numpy float32 written to a
# float64 field raises; without it, the number that leaves the process is garbage.
os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")
