"""Processes that `ros_round_trip.py` starts: a measuring vehicle, echoes, a sleeper."""
