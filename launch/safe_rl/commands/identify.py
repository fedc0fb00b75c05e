"""`safe-rl identify`: estimate the assumed bounds of a robust bundle from recordings."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import SafeRLError
from safe_rl_core.proposal import meaning, proposal_text, rounded_up

from safe_rl.commands.common import add_parser, whole

if TYPE_CHECKING:
    from safe_rl_core.identify import Bounds, Identification, Settings

DESCRIPTION = """\
Estimate delay, disturbance and estimate error of a robot from recordings, beside what its bundle
assumes, and propose new values. No bundle is changed.

  safe-rl identify runs/20260101-120000-quadrotor --bundle quadrotor_robust
  safe-rl identify log1.npz log2.npz --bundle unicycle_robust --exposure 600 --out proposed.yaml

Recordings: folders made by 'safe-rl fly', .mcap files, flight logs (.npz) of 'safe-rl simulate'.
The commands should vary, as they do in normal flight; 20 minutes say more than 20 seconds.
What comes out is a statistical estimate under the conditions of the recordings. It is not a bound:
whether the robot keeps to it stays an assumption, which the premise monitor watches in flight.
Exit code: 0, or 1 if the recordings set no limit to some channel: no proposal is written then.
"""
#: The comparison with the assumed bounds is to first order: it is off by less than this.
FIRST_ORDER = 1.05


def add_command(subparsers: Any) -> None:
    """Add `identify` to the command line."""
    parser = add_parser(subparsers, "identify", "estimate bounds from recordings", DESCRIPTION)
    parser.add_argument(
        "recordings", nargs="+", type=Path, metavar="RUN", help="run folder, .mcap or .npz"
    )
    parser.add_argument(
        "--bundle", required=True, metavar="B", help="robust bundle whose error chart is used"
    )
    parser.add_argument(
        "--exposure", type=_positive, default=3600.0, metavar="S",
        help="seconds whose largest value is estimated, default 3600",
    )  # fmt: skip
    parser.add_argument(
        "--probability", type=_share, default=0.999, metavar="P",
        help="of staying below it, per channel, default 0.999",
    )  # fmt: skip
    parser.add_argument(
        "--confidence", type=_share, default=0.99, metavar="C",
        help="of each upper limit, one-sided, default 0.99",
    )  # fmt: skip
    parser.add_argument(
        "--max-delay", type=whole(1), default=5, metavar="N", help="periods tried, default 5"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.yaml", help="write the proposed values there"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, estimate, print, write the proposal."""
    # Here, because the robot has `safe-rl launch` without what a report needs.
    from safe_rl_core.identify import Settings, assumptions, identify

    from safe_rl.flights import read_flights

    _check_out(args.out)
    bundle = Bundle.load(args.bundle)
    assumptions(bundle)
    settings = Settings(args.exposure, args.probability, args.confidence, args.max_delay)
    flights = [flight for path in args.recordings for flight in read_flights(path, bundle)]
    found = identify(bundle, flights, settings)
    for line in report_lines(bundle, found, settings, len(args.recordings)):
        print(line)
    if found.undetermined.any():
        return 1
    if args.out:
        args.out.write_text(proposal_text(bundle, found, settings, args.recordings))
        print(f"  proposal in {args.out}; no bundle was changed")
    return 0


def _check_out(path: Path | None) -> None:
    if path is None:
        return
    if not path.parent.is_dir():
        raise SafeRLError(f"cannot write {path}: the folder {path.parent} does not exist")
    if (path.parent / "bundle.yaml").exists():
        raise SafeRLError(
            f"{path} lies in a bundle, which must not be changed; name a file elsewhere"
        )


def report_lines(
    bundle: Bundle, found: Identification, settings: Settings, recordings: int
) -> list[str]:
    """What a person reads."""
    duration = found.periods * bundle.period
    head = (
        f"{bundle.name} ({bundle.hash[:12]}): {found.periods} periods = {duration:.0f} s from "
        f"{recordings} {'recording' if recordings == 1 else 'recordings'}"
    )
    lines = [head, "", *_delay_lines(found, bundle.period), ""]
    lines += _table("disturbance per period", found, found.disturbance)
    lines += ["", *_table("estimate error", found, found.estimate_error)]
    lines += ["", *_closing(found, settings)]
    return lines


def _delay_lines(found: Identification, period: float) -> list[str]:
    delay = found.delay
    sizes = ", ".join(f"{d}: {size:.2f}" for d, size in enumerate(delay.sizes))
    lines = [f"delay in periods of {period:g} s (size of the residuals, log scale)  {sizes}"]
    if delay.found is None:
        lines.append(
            f"  cannot be told, {delay.used} used: the commands vary too little for the noise, "
            "or the delay is no whole number of periods"
        )
    elif delay.found == delay.assumed:
        lines.append(f"  {delay.found}, as assumed")
    else:
        lines.append(
            f"  {delay.found}, but {delay.assumed} ASSUMED: "
            f"a certificate for {delay.assumed} says nothing about this robot"
        )
    if delay.found == len(delay.sizes) - 1:
        lines.append("  the longest that was tried: try more with --max-delay")
    return lines


def _table(title: str, found: Identification, bounds: Bounds) -> list[str]:
    known = bounds.true is not None
    rows = [[title, "unit", "assumed", "rms", *(["true max"] if known else []), "proposed", ""]]
    for i, (name, unit) in enumerate(zip(found.names, found.units, strict=True)):
        values = [bounds.assumed[i], bounds.rms[i], *([bounds.true[i]] if known else [])]
        numbers = [f"{value:.3g}" for value in values]
        rows.append([f"  {name}", unit, *numbers, *_verdict(found, bounds, i)])
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return ["  ".join(f"{v:<{w}}" for v, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def _verdict(found: Identification, bounds: Bounds, i: int) -> tuple[str, str]:
    value, assumed = bounds.proposed[i], bounds.assumed[i]
    if found.undetermined[i]:
        return "-", "too little data for a limit"
    text = f"{rounded_up(value):g}"
    if value > assumed:
        return text, "above what is assumed"
    return text, "cannot be seen, stays" if bounds.hidden[i] else ""


def _closing(found: Identification, settings: Settings) -> list[str]:
    worst = int(np.argmax(found.ratio))
    word = "no contradiction"
    if found.ratio[worst] > FIRST_ORDER:
        word = "they are CONTRADICTED"
    lines = [
        f"  the largest residual ({found.names[worst]}) is {100.0 * found.ratio[worst]:.0f} % of "
        f"what the assumed bounds explain to first order: {word}"
    ]
    if found.undetermined.any():
        lines.append(
            "  too little data for such a long exposure: record more, or ask for less with "
            "--exposure or --probability; no proposal is written"
        )
    return [*lines, *(f"  {line}" for line in meaning(settings))]


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0.5 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number in [0.5, 1), got {text}")
    return value
