"""torch.compile where it works, the plain function where it does not.

It generates C++ and needs a C++ compiler and Python's headers, which a machine that only flies
lacks. What it gives is a factor of about four in small networks and equations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function, wanted: bool = True) -> _Function:
    """The function compiled, if wanted and possible here; else as it is."""
    return torch.compile(function) if wanted and _works() else function


@cache
def _works() -> bool:
    """Try it once; say on stderr what is missing."""
    try:
        torch.compile(lambda x: torch.tanh(x) + 1.0)(torch.zeros(8))
    except Exception as error:  # whatever a missing compiler leads to inside of torch
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(
            f"torch.compile does not work here ({reason[0][:120]}): training is about four times "
            "slower; 'apt install g++ python3-dev' helps on Debian and Ubuntu",
            file=sys.stderr,
        )
        return False
    return True
