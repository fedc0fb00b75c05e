"""What a certificate claims, read anew.

`Claims` holds the entries of certificate.json and certificate.npz by their names, bundle.yaml, and
the program's functions, ready to be evaluated on balls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from flint import arb

from safe_rl_core.ball import Jet, Number, constants
from safe_rl_core.checker.boxes import Verdict
from safe_rl_core.errors import CertificateError
from safe_rl_core.program import Program
from safe_rl_core.tape import Tape

Claims = SimpleNamespace
#: Shapes: k errors, m inputs, n states, p schedule variables, C cells, d = k+m+k, b = 2k, x = p+d,
#: h safe rows, q split directions, l = 1+q, M leaves, g symmetries, a = k+m+p.
#: `remainder` is claimed for disturbances up to this multiple of those that are assumed.
SIGMA_MAX = 2.0
_SHAPES_TEXT = """
period: delay_steps: jitter: disturbance:k estimate_error:k prediction_error:k tracking_error:k
error_domain:k input_domain:m input_low:m input_high:m state_low:n state_high:n schedule_low:p
schedule_high:p schedule_cells:p tracking_gain:mk remainder_splits:x remainder:Ckdd
shift_remainder:kbb safe_remainder:hkk sampling_margin:h base_contraction:
base_disturbance_norm: base_estimate_norm: base_extent:k base_input:m base_schedule:p
base_gain:mk base_factor:kk base_cell_directions:qk base_cell_splits:q base_leaves_low:Mq
base_leaves_high:Mq base_leaves_multipliers:Ml base_symmetries:ga
"""
_SHAPES = dict(item.split(":") for item in _SHAPES_TEXT.split())
_ANY_SIGN = ("_low", "_high", "gain", "_input", "base_schedule", "factor", "ions", "symmetries")


def read(folder: Path) -> Claims:
    """The claims in a bundle's folder; an error if they are not well-formed."""
    data = json.loads((folder / "certificate.json").read_text())
    with np.load(folder / "certificate.npz", allow_pickle=False) as archive:
        data |= {name: archive[name] for name in archive.files}
    c = Claims(**{name: np.asarray(data[name], np.float64) for name in _SHAPES})
    sizes: dict[str, int] = {}
    for name, letters in _SHAPES.items():
        value = getattr(c, name)
        if value.ndim != len(letters) or any(
            sizes.setdefault(letter, size) != size or (size == 0 and letter != "g")
            for letter, size in zip(letters, value.shape, strict=True)
        ):
            raise CertificateError(f"{name} has shape {value.shape}, which does not fit {sizes}")
        usable = np.isfinite(value) | (name in ("state_low", "state_high"))
        if not np.all(usable) or (not name.endswith(_ANY_SIGN) and np.any(value < 0.0)):
            raise CertificateError(f"{name} must be finite, and >= 0 where it is a bound")
    c.k, c.m, p, q = (sizes[letter] for letter in "kmpq")
    sums = {"d": 2 * c.k + c.m, "b": 2 * c.k, "l": 1 + q, "a": c.k + c.m + p}
    sums |= {"x": p + sums["d"], "C": int(np.prod(c.schedule_cells))}
    if any(sizes.get(letter, size) != size for letter, size in sums.items()):
        raise CertificateError(f"the sizes of the entries, {sizes}, must meet {sums}")
    if np.any(c.schedule_cells % 1.0) or np.any(c.remainder_splits % 1.0):
        raise CertificateError("schedule_cells and remainder_splits must be whole numbers")
    for name in ("input", "schedule", "state", "base_leaves"):
        if not np.all(getattr(c, f"{name}_low") < getattr(c, f"{name}_high")):
            raise CertificateError(f"{name}_low must lie below {name}_high")
    c.program, c.hash = Program.load(folder / "program.txt"), data["program"]
    c.bundle = yaml.safe_load((folder / "bundle.yaml").read_text())
    # The inputs of `operating_state` are numbers of absolute value 1 and less.
    c.spread = np.ones(c.program.functions["operating_state"].inputs[0][1])
    c.tapes = {name: Tape(c.program, name) for name in c.program.functions}
    return c


def agreement(c: Claims) -> Verdict:
    """The certificate speaks of this program, and assumes what bundle.yaml assumes."""
    if c.hash != c.program.hash:
        return "refused", f"certified for program {c.hash[:12]}, this is {c.program.hash[:12]}"
    given, inputs = c.bundle["assumptions"], c.bundle["inputs"]
    wanted = {name: value for name, value in given.items() if name in _SHAPES}
    wanted |= {f"base_{name}": value for name, value in given["base"].items()}
    wanted |= {"period": c.bundle["period_s"], "delay_steps": c.bundle["delay_steps"]}
    wanted |= {f"input_{end}": [u[end] for u in inputs] for end in ("low", "high")}
    for name in ("disturbance", "estimate_error"):
        wanted[name] = [row[name] for row in given["errors"]]
    wanted["jitter"] = given["jitter_s"]
    for name, value in wanted.items():
        if not np.array_equal(np.ravel(getattr(c, name)), np.ravel(np.array(value, float))):
            return "refused", f"{name} is {getattr(c, name)}, bundle.yaml has {value}"
    return "proved", f"equal to bundle.yaml: {', '.join(sorted(wanted))}"


def jets(c: Claims, name: str, *inputs: Sequence[Number]) -> list[Jet] | None:
    """The outputs of a function of the program; None if one of them is undecided."""
    outputs = c.tapes[name](*inputs)
    return None if None in outputs else outputs


def values(c: Claims, name: str, *inputs: Iterable[Any]) -> list[arb]:
    """The outputs of a function at numbers or balls."""
    outputs = jets(c, name, *(constants(x) for x in inputs))
    if outputs is None:
        raise CertificateError(f"'{name}' has no decided value at a point of its domain")
    return [jet.value for jet in outputs]
