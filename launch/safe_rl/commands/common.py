"""What several commands share: types of arguments and the help's layout."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any, name: str, help: str, description: str) -> argparse.ArgumentParser:
    """A command's parser whose description keeps its line breaks."""
    return subparsers.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole(minimum: int) -> Any:
    """Argument type: a whole number of at least `minimum`."""

    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {minimum}, got {text}")
        return value

    return number


def not_negative(text: str) -> float:
    """Argument type: a finite number >= 0."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number >= 0, got {text}")
    return value
