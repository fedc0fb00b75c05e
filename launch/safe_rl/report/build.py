"""Builds the report of a run from its recording; called by `safe-rl fly` and `safe-rl report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import BundleError, PlantError
from safe_rl_core.metrics import summarise
from safe_rl_core.record import FlightLog

from safe_rl.json_file import write_json
from safe_rl.report.alignment import to_flight_log
from safe_rl.report.judgement import judge
from safe_rl.report.recording import Recording, read_recording

#: what `safe-rl fly` was asked to do, written beside the recording
SETTINGS = "run.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """A finished report: the summary, the flight log, and the files by name."""

    summary: dict[str, Any]
    log: FlightLog
    files: dict[str, Path]


def build_report(
    folder: str | Path,
    bundle: Bundle | None = None,
    film: bool = True,
    say: Say = lambda text: None,
) -> Report:
    """Write summary.json, report.html, overview.png and flight.gif into a run's folder.

    `bundle`: None looks up the one that the recording names; its hash must be the recorded one.
    """
    from safe_rl.report import figures, page, style

    folder = Path(folder)
    say("reading the recording")
    recording = read_recording(folder)
    folder = recording.path.parent if folder.is_file() else folder
    bundle = matching_bundle(recording, bundle)
    log = to_flight_log(recording, bundle)
    settings = _settings(folder)
    summary = flight_summary(bundle, log, recording, settings)
    files = {"summary": folder / "summary.json", "report": folder / "report.html"}
    write_json(files["summary"], summary)

    say("drawing the figures")
    drawings = {
        name: style.to_inline_svg(make(bundle, log, summary), name, text)
        for name, make, text in figures.FIGURES
    }
    headline = (
        f"{bundle.name}, plant {summary.get('plant', 'not recorded')}: {judge(summary).word} in "
        f"{summary['steps']} control periods · certificate: {summary['certificate']}"
    )
    files["overview"] = folder / "overview.png"
    picture = figures.overview_figure(bundle, log, summary, headline)
    files["overview"].write_bytes(style.to_png(picture))
    movie = _film(bundle, log, folder / "flight.gif", say) if film else None
    if movie is not None:
        files["film"] = movie
    say("writing the page")
    data = movie.read_bytes() if movie is not None else None
    files["report"].write_text(page.build_page(summary, drawings, data), encoding="utf-8")
    return Report(summary, log, files)


def matching_bundle(recording: Recording, bundle: Bundle | None) -> Bundle:
    """The bundle that flew: by the name in the recording unless given, and with the same hash."""
    bundle = bundle or Bundle.load(recording.bundle_name)
    if bundle.robot != recording.robot:
        raise BundleError(
            f"{recording.path} is a flight of a {recording.robot}, {bundle.name} is made for a "
            f"{bundle.robot}; pass the bundle that flew with --bundle"
        )
    if recording.bundle_hash and recording.bundle_hash != bundle.hash:
        raise BundleError(
            f"{recording.path} was flown with bundle hash {recording.bundle_hash[:12]}, "
            f"{bundle.path} has {bundle.hash[:12]}; pass the bundle that flew with --bundle"
        )
    return bundle


def flight_summary(
    bundle: Bundle, log: FlightLog, recording: Recording, settings: dict[str, Any]
) -> dict[str, Any]:
    """The scores of the flight, with what it was asked to be and what the recording lacks."""
    summary = dict(summarise(bundle, log))
    known = {**recording.facts, **settings}
    for key in ("plant", "seed", "laps", "pace", "started", "command", "machine", "versions"):
        if key in known:
            summary[key] = known[key]
    summary["task"] = bundle.task.name
    summary["recording"] = recording.path.name
    summary["gaps"] = recording.gaps
    summary["expected_steps"] = expected_steps(bundle, settings.get("laps"))
    verdict = judge(summary)
    summary["verdict"], summary["verdict_text"] = verdict.word, verdict.sentence
    return summary


def expected_steps(bundle: Bundle, laps: int | None) -> int | None:
    """Control periods of a task flown to its end, or None when it is not known how far."""
    from sim_bridge.flight import Flight

    return None if laps is None else Flight(bundle, laps).steps


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    return json.loads(path.read_text()) if path.is_file() else {}


def _film(bundle: Bundle, log: FlightLog, path: Path, say: Say) -> Path | None:
    """The film, or None with the reason: a report without it is still a report."""
    try:
        from safe_rl.report.video import render_flight

        say("rendering the film")
        return render_flight(bundle, log, path)
    except (ImportError, PlantError) as error:
        say(f"no film: {error}")
        return None
