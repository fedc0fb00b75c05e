"""Processes that `ros_round_trip.py` starts: a probe in the place of the vehicle, echoes, a clock."""
