"""The commands of `safe-rl`. Each module has `add_command(subparsers)` and `run(args)`."""
