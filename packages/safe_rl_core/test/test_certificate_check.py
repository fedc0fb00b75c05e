"""The certificate checker: an honest certificate passes, every way of bending it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cart_certificate as cart
import numpy as np
import pytest
import yaml
from safe_rl_core import ball
from safe_rl_core.checker import Report, base_check, boxes, check, formula_check
from safe_rl_core.program import Program

Entries = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """A folder with the cart's honest certificate."""
    folder = tmp_path_factory.mktemp("cart")
    cart.write(folder)
    return folder


@pytest.fixture
def few_points(monkeypatch):
    """Identities are compared at fewer points: these tests ask often."""
    monkeypatch.setattr(formula_check, "SAMPLES", 16)


def refused(report: Report) -> set[str]:
    """The items that were refused."""
    assert report.accepted == (not any(f.verdict == "refused" for f in report.findings))
    return {f.item for f in report.findings if f.verdict == "refused"}


def bent(honest: Path, folder: Path, change: Callable[[Entries], None]) -> Report:
    """The report on a copy of the certificate with changed entries."""
    shutil.copytree(honest, folder, dirs_exist_ok=True)
    data = json.loads((folder / "certificate.json").read_text())
    digest = data.pop("program")
    entries = {name: np.array(x, float) for name, x in data.items()}
    with np.load(folder / "certificate.npz") as archive:
        entries |= {name: archive[name] for name in archive.files}
    change(entries)
    cart.save(folder, entries, digest)
    return check(folder, workers=1, budget=600)


def test_the_honest_certificate_is_accepted(honest):
    """Item by item, with what is proved, checked and assumed kept apart; and with progress."""
    seen = []
    report = check(honest, lambda done, total: seen.append((done, total)), workers=1)
    assert refused(report) == set() and report.accepted
    verdicts = {f.item: f.verdict for f in report.findings}
    assert verdicts["formulas"] == verdicts["period"] == "checked"
    assert {verdicts[item] for item in verdicts if item.startswith("A")} == {"assumed"}
    proved = {item for item, verdict in verdicts.items() if verdict == "proved"}
    assert {"remainder", "sampling_margin", "base: contraction"} <= proved and len(proved) == 12
    assert seen == [(i, len(seen)) for i in range(1, len(seen) + 1)]


def test_workers_find_the_same(honest, few_points):
    """Processes only share the work."""
    both = (check(honest, workers=count) for count in (1, 2))
    one, two = ([(f.item, f.verdict) for f in report.findings] for report in both)
    assert one == two


def table_entries() -> list[tuple[str, int]]:
    """Every table and bound by name, with how many different entries are to be bent."""
    return [
        ("remainder", 6), ("shift_remainder", 4), ("safe_remainder", 1), ("sampling_margin", 5),
        ("prediction_error", 2), ("tracking_error", 2), ("base_extent", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "count"), table_entries())
def test_a_bound_two_percent_smaller_is_refused(honest, tmp_path, few_points, name, count):
    """No entry has 2 % to spare, and the item that holds it is named."""
    with np.load(honest / "certificate.npz") as archive:
        value = archive[name] if name in archive.files else None
    if value is None:
        value = np.array(json.loads((honest / "certificate.json").read_text())[name])
    places = np.argwhere(value > 0.0)
    assert len(places) >= count
    item = "base: inputs, extent, sum of norms" if name == "base_extent" else name
    for place in places[:: -(-len(places) // count)]:
        report = bent(honest, tmp_path, lambda c, at=tuple(place): scale(c, name, at, 0.98))
        assert item in refused(report), f"{name}{place}"


def scale(c: Entries, name: str, place: tuple[int, ...], by: float) -> None:
    """Multiply one entry."""
    c[name][place] *= by


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("base_disturbance_norm", "base: disturbance_norm"),
        ("base_estimate_norm", "base: estimate_norm"),
        ("base_contraction", "base: contraction"),
        ("base_factor", "agreement"),
        ("base_gain", "agreement"),
        ("tracking_gain", "agreement"),
        ("period", "agreement"),
        ("error_domain", "agreement"),
        ("schedule_high", "agreement"),
        ("input_high", "agreement"),
        ("estimate_error", "agreement"),
        ("disturbance", "agreement"),
    ],
)
def test_a_number_two_percent_off_is_refused(honest, tmp_path, few_points, name, item):
    """Norms that are too small; assumptions, gains and level that are not the bundle's."""
    report = bent(honest, tmp_path, lambda c: scale(c, name, ..., 0.98))
    assert any(found.startswith(item) for found in refused(report))


def drop_leaf(c: Entries) -> None:
    """Leaf 2 is gone."""
    for name in ("base_leaves_low", "base_leaves_high", "base_leaves_multipliers"):
        c[name] = np.delete(c[name], 2, axis=0)


def shrink_leaf(c: Entries) -> None:
    """A gap of 1e-9 between two leaves."""
    c["base_leaves_high"][1] -= 1e-9


def short_reach(c: Entries) -> None:
    """The outermost leaf ends inside of the set."""
    c["base_leaves_high"][-1] = float(c["base_extent"][0]) * 0.999


@pytest.mark.parametrize("change", [drop_leaf, shrink_leaf, short_reach])
def test_leaves_that_do_not_cover_the_set_are_refused(honest, tmp_path, few_points, change):
    """A single missing sliver is found."""
    assert "base: leaves cover the set, symmetries" in refused(bent(honest, tmp_path, change))


def test_multipliers_without_proof_are_refused(honest, tmp_path, few_points):
    """Zero proves nothing; a negative number is not a multiplier."""
    report = bent(honest, tmp_path, lambda c: scale(c, "base_leaves_multipliers", (1, 0), 0.0))
    assert refused(report) == {"base: contraction"}
    report = bent(honest, tmp_path, lambda c: scale(c, "base_leaves_multipliers", (1, 0), -1.0))
    assert refused(report) == {"certificate"}


def edit_bundle(folder: Path, change: Callable[[dict], None]) -> None:
    """Change bundle.yaml."""
    data = yaml.safe_load((folder / "bundle.yaml").read_text())
    change(data)
    (folder / "bundle.yaml").write_text(yaml.safe_dump(data))


def test_a_symmetry_that_does_not_hold_is_refused(honest, tmp_path, few_points):
    """In the certificate alone; in the bundle as well; and where only the error map breaks it."""
    shutil.copytree(honest, tmp_path, dirs_exist_ok=True)
    for signs in ([1, 1, -1, -1, -1], [1, -1, -1, 1, -1]):

        def change(c: Entries, signs: list[int] = signs) -> None:
            c["base_symmetries"] = np.array([signs], float)

        found = refused(bent(honest, tmp_path, change))
        assert "agreement with bundle.yaml and program" in found
        edit_bundle(tmp_path, lambda b, s=signs: b["assumptions"]["base"].update(symmetries=[s]))
        found = refused(check(tmp_path, workers=1, budget=600))
        assert "base: leaves cover the set, symmetries" in found
    text = (honest / "program.txt").read_text()
    other = text.replace("function error_map", "function spare_map").replace(
        "function shifted", lopsided(text) + "function shifted"
    )
    found = refused(rehashed(honest, tmp_path / "b", other))
    assert "formulas" in found


def lopsided(text: str) -> str:
    """error_map with a term that has no mirror image."""
    body = text[text.index("function error_map") : text.index("function shifted")]
    head, outputs = body.rsplit("return ", 1)
    first, second = outputs.split()
    return (
        f"{head}v900 = input e 0\nv901 = mul v900 v900\nv902 = const 0.0001\n"
        f"v903 = mul v901 v902\nv904 = add {second} v903\nreturn {first} v904\n"
    )


def rehashed(honest: Path, folder: Path, text: str) -> Report:
    """The report on another program under the same certificate, its hash brought up to date."""
    shutil.copytree(honest, folder, dirs_exist_ok=True)
    (folder / "program.txt").write_text(text)
    data = json.loads((folder / "certificate.json").read_text())
    data["program"] = Program.load(folder / "program.txt").hash
    (folder / "certificate.json").write_text(json.dumps(data))
    return check(folder, workers=1, budget=600)


def test_another_program_is_refused(honest, tmp_path, few_points):
    """By its hash; and by what it does, should someone write a fresh hash."""
    text = (honest / "program.txt").read_text()
    shutil.copytree(honest, tmp_path / "a")
    (tmp_path / "a" / "program.txt").write_text(text.replace("const 0.2\n", "const 0.204\n"))
    found = refused(check(tmp_path / "a", workers=1, budget=600))
    assert "agreement with bundle.yaml and program" in found
    longer = text.replace("const 0.02\n", "const 0.0204\n")
    assert "period" in refused(rehashed(honest, tmp_path / "b", longer))
    steeper = text.replace("const 0.2\n", "const 0.204\n")
    assert "remainder" in refused(rehashed(honest, tmp_path / "c", steeper))
    begin = text.index("function base_controller")
    other = text[:begin] + text[begin:].replace("const -2.5", "const -2.55", 1)
    assert refused(rehashed(honest, tmp_path / "d", other)) == {"formulas"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("remainder", np.zeros((4, 2, 5, 5)) * np.nan), ("remainder", np.zeros((3, 2, 5, 5))),
        ("disturbance", -np.ones(2)), ("jitter", np.ones(2)), ("delay_steps", np.array(np.inf)),
        ("base_leaves_low", np.full((4, 1), 9.0)), ("base_symmetries", np.ones((1, 4))),
        ("base_factor", np.zeros((2, 2))), ("schedule_cells", np.array([4.0, 2.0])),
        ("schedule_cells", np.array([2.5, 1.6])), ("remainder_splits", np.full(7, 1.5)),
    ],
)  # fmt: skip
def test_malformed_entries_are_refused(honest, tmp_path, name, value):
    """Wrong shape, not finite, wrong sign, singular: refused before anything is derived."""
    report = bent(honest, tmp_path, lambda c: c.update({name: value}))
    assert refused(report) == {"certificate"}


def test_missing_files_are_refused_not_raised(tmp_path):
    """An empty folder is a refusal with a reason."""
    report = check(tmp_path, workers=1)
    assert refused(report) == {"certificate"} and "certificate.json" in report.findings[0].detail


def test_a_claim_that_is_only_nearly_true_is_called_false():
    """The worst box is followed to a point where the claim fails."""
    low, high = np.array([-1.0, 0.0]), np.array([1.0, 2.0])

    def excess(a: np.ndarray, b: np.ndarray) -> list[float]:
        x, y = ball.balls(a, b)
        return [boxes.over(x * y - x * x, bound) for bound in (1.05, 0.95)]

    verdict, why = boxes.prove(4000, low, high, excess)
    assert verdict == "refused" and why.startswith("false")


@pytest.mark.parametrize(
    "gain", [[[1.0, -2.0, 0.0], [0.0, 0.0, 3.0]], [[1.0, -2.0, 0.5], [4.0, 1.0, 3.0]]]
)
def test_corners_reach_as_far_as_the_set(gain):
    """In every direction p: max |p corner| = sum |p gain_i| size_i; errors in one row, in two."""
    gain, size, rng = np.array(gain), np.array([0.1, 0.2, 0.3]), np.random.default_rng(0)
    corners = np.array(base_check._corners(gain, size).tolist(), float)
    for p in rng.normal(size=(50, 2)):
        assert np.abs(p @ corners).max() == pytest.approx(np.abs(p @ gain) @ size, rel=1e-9)


def test_positive_definite_only_if_every_matrix_is():
    """Sylvester's case by hand: [[a, 1], [1, 1]] is positive definite for a > 1 only."""
    for low, high, expected in ((1.01, 3.0, True), (0.99, 3.0, False), (-2.0, -1.0, False)):
        a = ball.balls(np.array([low]), np.array([high]))[0]
        assert base_check._positive([[a, 1 + 0 * a], [1 + 0 * a, 1 + 0 * a]]) is expected


def test_only_what_has_an_image_is_left_out():
    """x -> -x folds [-1, 1], not [-2, 1]; of (x, y) -> (-x, -y) the first is folded."""
    one, both = [np.array([-1.0, 1.0])], [np.array([-1.0, -1.0]), np.array([1.0, -1.0])]
    high = np.ones(2)
    assert boxes.folds(-high, high, one) == [0] and boxes.folds(-high, high, both) == [0, 1]
    for low in ([-2.0, -1.0], [-0.5, -1.0]):
        assert boxes.folds(np.array(low), high, one) == []
        assert boxes.folds(np.array(low), high, both) == [1]


def test_the_grid_is_row_major_and_without_gaps():
    """Cell (i, j) of 2 x 3 is number 3 i + j; neighbours share an edge exactly."""
    size = np.array([0.3, 0.7])
    lows, highs = boxes.grid(0.0 * size, size, np.array([2.0, 3.0]), [0, 1])
    assert lows.shape == (6, 2) and lows[1, 0] == lows[0, 1] == 0.0 and lows[3, 1] == 0.0
    assert np.array_equal(highs[:2, 1], lows[1:3, 1]) and np.array_equal(highs[:3, 0], lows[3:, 0])
    assert np.array_equal(highs[-1], size)
    turned, _ = boxes.grid(0.0 * size, size, np.array([2.0, 3.0]), order=[1, 0])
    assert np.array_equal(turned[:2, 0], lows[::3, 0]) and set(map(tuple, turned)) == set(
        map(tuple, lows)
    )
