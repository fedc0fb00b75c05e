"""The page, the figures, and the film of synthetic flights."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safe_rl.report import figures, page, style
from safe_rl.report.geometry import boundaries, channel_index, reference_path
from safe_rl.report.judgement import NOMINAL_ASSUMPTION
from safe_rl.report.verdicts import runs, verdict_names
from safe_rl_core.errors import BundleError
from safe_rl_core.metrics import summarise
from safe_rl_core.record import UNSHIELDED, FlightLog
from synthetic import quadrotor_bundle, quadrotor_log, unicycle_bundle, unicycle_log

FLIGHTS = (
    (quadrotor_bundle(), quadrotor_log()),
    (quadrotor_bundle(), quadrotor_log(laps=1, peak=3.05)),
    (unicycle_bundle(), unicycle_log()),
)


def summary_of(bundle: SimpleNamespace, log: FlightLog) -> dict:
    return {**summarise(bundle, log), "plant": "bullet", "seed": 1, "versions": {"python": "3"}}


def page_of(bundle: SimpleNamespace, log: FlightLog, film: bytes | None = b"GIF89a") -> str:
    summary = summary_of(bundle, log)
    drawings = {
        name: style.to_inline_svg(make(bundle, log, summary), name, text)
        for name, make, text in figures.FIGURES
    }
    return page.build_page(summary, drawings, film)


@pytest.fixture(scope="module", params=range(len(FLIGHTS)), ids=["five_laps", "violated", "lane"])
def html(request: pytest.FixtureRequest) -> str:
    return page_of(*FLIGHTS[request.param])


def test_the_page_needs_nothing_from_outside(html: str) -> None:
    assert "http" not in html
    assert "<script" not in html
    assert "@import" not in html
    for source in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert source.startswith(("#", "data:image/gif;base64,"))
    assert not re.search(r"url\((?!#)", html)


def test_ids_are_unique_and_references_resolve(html: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]*)\)", html)) | set(re.findall(r'href="#([^"]*)"', html))
    assert used
    assert used <= set(ids)


def test_the_certificate_is_said_plainly(html: str) -> None:
    assert "Certificate: none (nominal)." in html
    assert page.escape(NOMINAL_ASSUMPTION) in html


def test_drawings_follow_the_reader_s_colours(html: str) -> None:
    for colour, variable in style.CSS_VARIABLES.items():
        body = html[html.index("</style>") :]
        assert colour not in body
        assert f"{variable}:" in page.CSS


def test_the_badge_is_red_for_a_violation() -> None:
    assert '<div class="badge bad">VIOLATED</div>' in page_of(*FLIGHTS[1])
    assert '<div class="badge good">NO VIOLATION</div>' in page_of(*FLIGHTS[0])


def test_names_are_escaped_and_the_film_may_be_missing() -> None:
    bundle = unicycle_bundle()
    bundle.name = "<b>lane</b>"
    text = page_of(bundle, unicycle_log(), film=None)
    assert "<b>lane</b>" not in text
    assert "&lt;b&gt;lane&lt;/b&gt;" in text
    assert "data:image/gif" not in text


def test_overview_is_a_picture() -> None:
    bundle, log = FLIGHTS[2]
    figure = figures.overview_figure(bundle, log, summary_of(bundle, log), "lane")
    assert style.to_png(figure, dpi=40).startswith(b"\x89PNG")


def test_figures_without_any_latency_say_so() -> None:
    bundle, log = FLIGHTS[2]
    log.latency_us[:] = np.nan
    figure = figures.latency_figure(bundle, log, summary_of(bundle, log))
    assert "not recorded" in style.to_inline_svg(figure, "latency", "times")


def test_a_step_without_verdict_is_drawn_as_such() -> None:
    log = unicycle_log()
    log.verdict[3:5] = UNSHIELDED
    names = verdict_names(log)
    assert names[2:6] == ["PASSED", style.NOT_JUDGED, style.NOT_JUDGED, "PASSED"]
    assert runs(names[:6]) == [(0, 3, "PASSED"), (3, 5, style.NOT_JUDGED), (5, 6, "PASSED")]
    assert style.verdict_colour(style.NOT_JUDGED) == style.MUTED


def test_walls_are_where_the_safe_set_ends() -> None:
    bundle = quadrotor_bundle()
    walls = boundaries(bundle, "pz", -1.0, 5.0, np.zeros(10))
    assert [(wall.row, wall.forbidden_above) for wall in walls] == [
        ("ceiling", True),
        ("floor", False),
    ]
    assert [wall.value for wall in walls] == pytest.approx([3.0, 0.1], abs=1e-9)
    with pytest.raises(BundleError, match="no state 'pq'"):
        channel_index(bundle, "pq")


def test_a_closed_course_is_drawn_once() -> None:
    quadrotor, unicycle = quadrotor_bundle(), unicycle_bundle()
    assert len(reference_path(quadrotor, 10.0)) == 106
    assert len(reference_path(unicycle, 10.0)) == 201
    assert reference_path(quadrotor, 10.0)[:, 2].max() == pytest.approx(3.5, abs=1e-3)


@pytest.mark.sim
@pytest.mark.parametrize("index", [1, 2])
def test_film(tmp_path: Path, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pybullet")
    from safe_rl.report import video

    monkeypatch.setattr(video, "MAX_FRAMES", 6)
    bundle, log = FLIGHTS[index]
    path = video.render_flight(bundle, log, tmp_path / "flight.gif")
    with Image.open(path) as film:
        assert 4 <= film.n_frames <= 6
        assert film.size == video.SIZE
        film.seek(film.n_frames - 1)
        colours = {colour for _, colour in film.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert len(colours) > 20
    assert path.stat().st_size < 1_000_000


@pytest.mark.sim
def test_of_a_long_flight_the_tightest_part_is_filmed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pybullet")
    from safe_rl.report import video

    bundle, log = FLIGHTS[2]
    log.x_true[300, 1] = 1.79
    monkeypatch.setattr(video, "MAX_FRAMES", 20)
    stride, shown = video._shown_steps(bundle, log)
    assert stride == 3
    assert shown == range(270, 330, 3)
