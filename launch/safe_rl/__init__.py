"""The front door of safe_rl: the command line, the start of the stack, and the report of a run."""
