"""A bundle is taken as a whole or refused with the reason."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safe_rl_core import Bundle, Policy
from safe_rl_core.bundle import REQUIRED_FILES, write_sums
from safe_rl_core.errors import BundleError
from shipped import MODELS


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "unicycle_lane", tmp_path / "unicycle_lane"))


def edit(folder: Path, **changes: object) -> None:
    """Change fields of bundle.yaml and sign the folder again, as a careless editor would."""
    path = folder / "bundle.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    write_sums(folder)


def test_the_certificate_is_plain(bundle: Bundle) -> None:
    assert bundle.certificate == "none (nominal)"


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_one_changed_byte_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} was changed"):
        Bundle.load(copy)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.load(copy)


def test_an_extra_file_is_refused(copy: Path) -> None:
    (copy / "more.txt").write_text("x")
    with pytest.raises(BundleError, match="not listed"):
        Bundle.load(copy)


def test_an_unfinished_folder_is_refused(copy: Path) -> None:
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(BundleError, match="not a finished bundle"):
        Bundle.load(copy)


def test_sums_without_a_required_file_are_refused(copy: Path) -> None:
    (copy / "policy.onnx").unlink()
    write_sums(copy)
    with pytest.raises(BundleError, match="does not list policy.onnx"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "safe_rl_bundle 99"}, "expected format"),
        ({"inputs": [{"name": "a", "unit": "m", "low": 0, "high": 1}]}, "bundle.yaml needs"),
        ({"safe_set": ["lane_upper"]}, "bundle.yaml needs safe_set"),
        ({"class_k_per_s": 30.0}, "class_k"),
        ({"base_class_k_per_s": 0.0}, "base_class_k"),
        ({"stop_action": [0.0]}, "stop_action must have 2"),
        ({"stop_action": [99.0, 0.0]}, "outside of the input box"),
        ({"input_scale": [1.0, 0.0]}, "input_scale"),
        ({"horizon_steps": 0}, "horizon"),
        ({"margins": {}}, "cannot be read"),
        ({"task": None}, "cannot be read"),
    ],
)
def test_parts_that_do_not_match_are_refused(copy: Path, changes: dict, message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


def test_margins_below_rounding_are_refused(copy: Path, unicycle: Bundle) -> None:
    edit(copy, margins=dict(unicycle.margins) | {"lane_upper": 0.0})
    with pytest.raises(BundleError, match="every margin"):
        Bundle.load(copy)


def test_a_broken_program_is_refused(copy: Path) -> None:
    text = (copy / "program.txt").read_text()
    (copy / "program.txt").write_text(text.replace("function observation", "function view"))
    write_sums(copy)
    with pytest.raises(BundleError, match="no function 'observation'"):
        Bundle.load(copy)
    (copy / "program.txt").write_text("nonsense")
    write_sums(copy)
    with pytest.raises(BundleError, match="first line"):
        Bundle.load(copy)


def test_a_program_without_starts_is_refused(copy: Path) -> None:
    text = (copy / "program.txt").read_text()
    (copy / "program.txt").write_text(text.replace("function initial_state", "function begin"))
    write_sums(copy)
    with pytest.raises(BundleError, match="no function 'initial_state'"):
        Bundle.load(copy)


def test_yaml_that_is_no_mapping_is_refused(copy: Path) -> None:
    (copy / "bundle.yaml").write_text("- a list\n")
    write_sums(copy)
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.load(copy)


def test_a_tracked_name_must_be_a_state(copy: Path, unicycle: Bundle) -> None:
    task = yaml.safe_load((copy / "bundle.yaml").read_text())["task"]
    edit(copy, task=task | {"tracked": ["altitude"]})
    with pytest.raises(BundleError, match="tracked names no state: .'altitude'"):
        Bundle.load(copy)


def test_a_policy_of_another_period_is_refused(unicycle: Bundle) -> None:
    with pytest.raises(BundleError, match="its period_s is '0.05', the bundle's is '0.1'"):
        Policy(replace(unicycle, period=0.1))


def test_unknown_names_of_the_package_are_said_to_be_unknown() -> None:
    import safe_rl_core

    with pytest.raises(AttributeError, match="no attribute 'Sword'"):
        _ = safe_rl_core.Sword


def test_the_policy_of_another_robot_is_refused(copy: Path) -> None:
    shutil.copyfile(MODELS / "quadrotor_powerloop" / "policy.onnx", copy / "policy.onnx")
    write_sums(copy)
    with pytest.raises(BundleError, match="trained for another task or robot"):
        Policy(Bundle.load(copy))


def test_a_file_that_is_no_network_is_refused(copy: Path) -> None:
    (copy / "policy.onnx").write_bytes(b"no network")
    write_sums(copy)
    with pytest.raises(BundleError, match="not a policy that onnxruntime can load"):
        Policy(Bundle.load(copy))


def test_an_unknown_name_lists_the_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    with pytest.raises(BundleError, match=f"no bundle 'nothing'.*{tmp_path}"):
        Bundle.load("nothing")


def test_a_name_is_found_in_an_installed_prefix(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = copy.parent / "prefix"
    shutil.copytree(copy, prefix / "share" / "safe_rl_models" / "mine")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix))
    assert Bundle.load("mine").robot == "unicycle"


def test_a_policy_of_another_robot_with_the_same_sizes_is_refused(
    copy: Path, unicycle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match="its robot is 'unicycle', the bundle's is 'boat'"):
        Policy(replace(unicycle, robot="boat"))


def test_the_policy_says_where_it_comes_from(bundle: Bundle) -> None:
    metadata = Policy(bundle).metadata
    assert metadata["robot"] == bundle.robot
    assert {"seed", "git_commit", "command", "hardware"} <= set(metadata)
