"""`safe-rl inspect`: what is in a bundle, in words and numbers."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from safe_rl_core.bundle import Bundle, Channel, file_hash
from safe_rl_core.program import Function

from safe_rl.commands.common import add_parser
from safe_rl.report.judgement import certificate_lines

DESCRIPTION = """\
Say what a bundle is: robot, channels with units and bounds, the traced functions, the parameters
of the shield, what is certified, and the hashes that bind its parts.

  safe-rl inspect quadrotor_powerloop
  safe-rl inspect models/unicycle_lane --verify
"""
CARD_LINES = 12


def add_command(subparsers: Any) -> None:
    """Add `inspect` to the command line."""
    parser = add_parser(subparsers, "inspect", "say what is in a bundle", DESCRIPTION)
    parser.add_argument("bundle", help="name or folder of a bundle, e.g. quadrotor_powerloop")
    parser.add_argument(
        "--verify", action="store_true", help="hash every file again and show each result"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the bundle; loading it already refuses a changed, missing or foreign part."""
    bundle = Bundle.load(args.bundle)
    certificate, meaning = certificate_lines(bundle.certificate)
    print(f"{bundle.name}: {bundle.robot}, variant '{bundle.variant}', in {bundle.path}")
    print(f"certificate: {certificate}\n  {meaning}")
    _section("states", [_channel(channel) for channel in bundle.states])
    inputs = [
        f"{_channel(channel)}  scale {scale:g}  when stopped {stop:g}"
        for channel, scale, stop in zip(
            bundle.inputs, bundle.input_scale, bundle.stop_action, strict=True
        )
    ]
    _section("inputs", inputs)
    _section("shield", _shield(bundle))
    margins = [f"{name:<14} margin {bundle.margins[name]:g}" for name in bundle.safe_set_names]
    _section("safe set, rows h(x) >= 0", margins)
    _section("base set, rows h_B(x) >= 0", list(bundle.base_set_names))
    _section("task", _task(bundle))
    _section("functions of program.txt", [_function(f) for f in bundle.program.functions.values()])
    _section("policy.onnx", _policy(bundle))
    _section("files", _files(bundle, args.verify))
    card = (bundle.path / "CARD.md").read_text().splitlines()
    _section(f"CARD.md, first lines of {len(card)}", card[:CARD_LINES])
    return 0


def _section(title: str, lines: list[str]) -> None:
    print(f"\n{title}")
    for line in lines:
        print(f"  {line}")


def _channel(channel: Channel) -> str:
    unit = "-" if channel.unit == "1" else channel.unit
    return f"{channel.name:<10} {unit:<7} {channel.low:g} … {channel.high:g}"


def _shield(bundle: Bundle) -> list[str]:
    seconds = bundle.horizon * bundle.period
    return [
        f"control period   {bundle.period:g} s",
        f"backup horizon   {bundle.horizon} steps = {seconds:g} s",
        f"actuation delay  {bundle.delay_steps} steps until an action takes effect",
        f"class-K gains    safe set {bundle.class_k:g} 1/s, base set {bundle.base_class_k:g} 1/s",
        *(f"{kind} variant    {name}" for kind, name in bundle.variants.items()),
    ]


def _task(bundle: Bundle) -> list[str]:
    task = bundle.task
    laps = f"laps of {task.lap_s:g} s, {task.laps_default} by default" if task.lap_s else "no laps"
    return [
        f"{task.name}, episodes of {task.duration_s:g} s, {laps}",
        f"observation ({len(task.observation)}): {', '.join(task.observation)}",
    ]


def _function(function: Function) -> str:
    """Signature and size of a traced function; inputs and constants are no operations."""
    used = Counter(
        instruction.op
        for instruction in function.instructions
        if instruction.op not in ("input", "const", "element")
    )
    takes = ", ".join(f"{name}:{size}" for name, size in function.inputs)
    most = ", ".join(f"{op} {count}" for op, count in used.most_common(4))
    signature = f"{function.name}({takes}) -> {function.output_size}"
    return f"{signature:<38} {sum(used.values()):>5} operations  ({most or 'none'})"


def _policy(bundle: Bundle) -> list[str]:
    from safe_rl_core.policy import Policy

    return [f"{key}: {value}" for key, value in sorted(Policy(bundle).metadata.items())]


def _files(bundle: Bundle, verify: bool) -> list[str]:
    lines = [f"bundle hash {bundle.hash}"]
    for name, recorded in sorted(bundle.hashes.items()):
        state = ""
        if verify:
            state = "  unchanged" if file_hash(bundle.path / name) == recorded else "  CHANGED"
        lines.append(f"{recorded[:16]}…  {name}{state}")
    return lines
