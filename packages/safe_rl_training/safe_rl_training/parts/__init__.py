"""What trainers share: networks, imperfect actuators, start states, provenance, drawing."""
