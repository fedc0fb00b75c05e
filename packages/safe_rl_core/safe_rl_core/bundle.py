"""A bundle: everything that one shielded robot consists of, in one folder, bound by hashes.

    bundle.yaml    names, units, bounds, period, theorem parameters, certificate
    program.txt    the traced mathematics (program.py); program.weights.npz for its networks
    certificate.*  where it says `certificate: robust`: assumptions and derived bounds
    policy.onnx    the task policy, normalisation inside
    CARD.md        for people: what it is, how it was made, what is known about it
    SHA256SUMS     the hash of every file above; its own hash is the bundle's

Nothing here can be overridden by a node's parameters: what is in the bundle is the theorem.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from safe_rl_core.certificate import JSON_FILE, TABLES_FILE, Certificate
from safe_rl_core.errors import BundleError, CertificateError, ProgramError
from safe_rl_core.kernel import Compiled, Kernel, theorem_vector
from safe_rl_core.program import Program

Array = NDArray[np.float64]

FORMAT = "safe_rl_bundle 1"
SUMS = "SHA256SUMS"
#: What `certificate` in bundle.yaml may say.
NOMINAL, ROBUST = "none (nominal)", "robust"
REQUIRED_FILES = ("bundle.yaml", "program.txt", "policy.onnx", "CARD.md")
#: Every safe row keeps at least this distance, so that rounding can never cost a violation.
NUMERICAL_MARGIN = 1e-6


@dataclass(frozen=True)
class Channel:
    """One component of a state or input: name, SI unit, and the operating or actuator bounds."""

    name: str
    unit: str
    low: float
    high: float


@dataclass(frozen=True)
class Task:
    """What the policy was trained for; times in s. `tracked` names the states scored by RMSE."""

    name: str
    duration_s: float
    lap_s: float | None
    laps_default: int
    observation: tuple[str, ...]
    tracked: tuple[str, ...]


@dataclass(frozen=True)
class Bundle:
    """A loaded and checked bundle. Arrays are float64; m inputs, n states, n_h safe rows.

    `assumptions`: what a certificate is to be derived from, as in bundle.yaml; None for a nominal
    bundle. `robust`: the certificate, where there is one.
    """

    path: Path
    name: str
    robot: str
    variant: str
    states: tuple[Channel, ...]
    inputs: tuple[Channel, ...]
    period: float
    horizon: int
    delay_steps: int
    class_k: float
    base_class_k: float
    safe_set_names: tuple[str, ...]
    base_set_names: tuple[str, ...]
    margins: Mapping[str, float]
    input_scale: Array
    stop_action: Array
    certificate: str
    task: Task
    variants: Mapping[str, str]
    program: Program
    hashes: Mapping[str, str]
    hash: str
    assumptions: Mapping[str, Any] | None = None
    robust: Certificate | None = None

    @property
    def input_low(self) -> Array:
        """Lower input bounds (m,)."""
        return np.array([c.low for c in self.inputs])

    @property
    def input_high(self) -> Array:
        """Upper input bounds (m,)."""
        return np.array([c.high for c in self.inputs])

    @property
    def margin(self) -> Array:
        """Distance kept from each safe row (n_h,), in the row's unit."""
        return np.array([self.margins[name] for name in self.safe_set_names])

    @property
    def policy_path(self) -> Path:
        """The task policy's file."""
        return self.path / "policy.onnx"

    @cached_property
    def compiled(self) -> Compiled:
        """The program as compiled functions, built on first use and shared."""
        return Compiled(self.program)

    @cached_property
    def _self_test(self) -> None:
        self._new_kernel().self_test()

    def kernel(self) -> Kernel:
        """A new rollout kernel with this bundle's theorem parameters (one per thread).

        The first call checks it against the program; KernelError if they differ.
        """
        _ = self._self_test
        return self._new_kernel()

    def _new_kernel(self) -> Kernel:
        theorem = theorem_vector(
            self.class_k,
            self.base_class_k,
            self.period,
            low=self.input_low,
            high=self.input_high,
            scale=self.input_scale,
            margin=self.margin,
        )
        return Kernel(self.compiled, theorem, self.horizon)

    def row_name(self, row: int) -> str:
        """Name of a row of the rollout, "<row>@<node>": ceiling@37 is the ceiling at psi_37."""
        safe = len(self.safe_set_names)
        node, index = divmod(row, safe)
        if node <= self.horizon:
            return f"{self.safe_set_names[index]}@{node}"
        return f"base.{self.base_set_names[row - (self.horizon + 1) * safe]}@{self.horizon}"

    @staticmethod
    def load(source: str | Path) -> Bundle:
        """Load a bundle from a folder, or by name from the installed models or ./models.

        Raises BundleError, saying why, if a file is missing or altered, or if parts do not match.
        """
        path = find(source)
        hashes, own = _check_files(path)
        text = (path / "bundle.yaml").read_text()
        try:
            data = yaml.safe_load(text)
            program = Program.load(path / "program.txt")
            bundle = _from_mapping(path, data, program, hashes, own)
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path / 'bundle.yaml'} cannot be read: {error!r}") from error
        except ProgramError as error:
            raise BundleError(f"{path}: {error}") from error
        _check_shapes(bundle)
        if bundle.certificate == NOMINAL:
            return bundle
        certificate = Certificate.load(path)
        _check_certificate(bundle, certificate)
        return replace(bundle, robust=certificate)


def find(source: str | Path) -> Path:
    """The folder of a bundle given as a path or by name; BundleError lists where it looked."""
    places = [Path(source)]
    if os.sep not in str(source):
        places += [folder / str(source) for folder in model_folders()]
    for place in places:
        if (place / "bundle.yaml").is_file():
            return place.resolve()
    looked = ", ".join(str(p) for p in dict.fromkeys(places))
    raise BundleError(f"no bundle '{source}': looked for bundle.yaml in {looked}")


def model_folders() -> list[Path]:
    """Where bundles may lie: under each installed prefix, then `models` of the working folder."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    return [*(Path(p) / "share" / "safe_rl_models" for p in prefixes if p), Path("models")]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_sums(path: Path) -> None:
    """Write SHA256SUMS over every file of a bundle folder (`sha256sum -c` can check it)."""
    names = sorted(p.name for p in path.iterdir() if p.is_file() and p.name != SUMS)
    (path / SUMS).write_text("".join(f"{file_hash(path / n)}  {n}\n" for n in names))


def certify(path: Path, certificate: Certificate) -> Bundle:
    """Put a certificate into a bundle's folder and bind it with the hashes; returns the bundle."""
    certificate.save(path)
    text = (path / "bundle.yaml").read_text()
    changed = text.replace(f"certificate: {NOMINAL}\n", f"certificate: {ROBUST}\n")
    (path / "bundle.yaml").write_text(changed)
    write_sums(path)
    return Bundle.load(path)


def _check_files(path: Path) -> tuple[dict[str, str], str]:
    sums = path / SUMS
    if not sums.is_file():
        raise BundleError(f"{path} has no {SUMS}; it is not a finished bundle, export it again")
    hashes = {}
    for line in sums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        hashes[name] = digest
    for name in REQUIRED_FILES:
        if name not in hashes:
            raise BundleError(f"{sums} does not list {name}; export the bundle again")
    present = {p.name for p in path.iterdir() if p.is_file() and p.name != SUMS}
    for name in sorted(present | set(hashes)):
        if name not in hashes:
            raise BundleError(f"{path / name} is not listed in {SUMS}: remove it or export again")
        if name not in present:
            raise BundleError(f"{path / name} is missing, but {SUMS} lists it: restore it")
        got = file_hash(path / name)
        if got != hashes[name]:
            raise BundleError(
                f"{path / name} was changed: {SUMS} has {hashes[name][:12]}…, the file is "
                f"{got[:12]}…; restore the file, or export the bundle again"
            )
    return hashes, file_hash(sums)


def _from_mapping(
    path: Path, data: Any, program: Program, hashes: Mapping[str, str], own: str
) -> Bundle:
    if data.get("format") != FORMAT:
        raise BundleError(f"{path}: expected format '{FORMAT}', got '{data.get('format')}'")
    task = data["task"]
    margins = {name: float(data["margins"][name]) for name in data["safe_set"]}
    return Bundle(
        path=path,
        name=data["name"],
        robot=data["robot"],
        variant=data["variant"],
        states=tuple(_channel(c) for c in data["states"]),
        inputs=tuple(_channel(c) for c in data["inputs"]),
        period=float(data["period_s"]),
        horizon=int(data["horizon_steps"]),
        delay_steps=int(data["delay_steps"]),
        class_k=float(data["class_k_per_s"]),
        base_class_k=float(data["base_class_k_per_s"]),
        safe_set_names=tuple(data["safe_set"]),
        base_set_names=tuple(data["base_set"]),
        margins=margins,
        input_scale=np.array(data["input_scale"], np.float64),
        stop_action=np.array(data["stop_action"], np.float64),
        certificate=data["certificate"],
        task=Task(
            name=task["name"],
            duration_s=float(task["duration_s"]),
            lap_s=None if task["lap_s"] is None else float(task["lap_s"]),
            laps_default=int(task["laps_default"]),
            observation=tuple(task["observation"]),
            tracked=tuple(task["tracked"]),
        ),
        variants=dict(data["variants"]),
        program=program,
        hashes=dict(hashes),
        hash=own,
        assumptions=data.get("assumptions"),
    )


def _channel(data: Any) -> Channel:
    return Channel(data["name"], data["unit"], float(data["low"]), float(data["high"]))


def _check_shapes(bundle: Bundle) -> None:
    n, m = len(bundle.states), len(bundle.inputs)
    safe, base = len(bundle.safe_set_names), len(bundle.base_set_names)
    expected = {
        "dynamics": ({"x": n, "u": m}, n),
        "step": ({"x": n, "u": m}, n),
        "safe_set": ({"x": n}, safe),
        "base_set": ({"x": n}, base),
        "backup_policy": ({"x": n}, m),
        "base_controller": ({"x": n}, m),
        "reference": ({"t": 1}, n),
        "observation": ({"x": n, "t": 1}, len(bundle.task.observation)),
        "reward": ({"x_next": n, "u": m, "t": 1}, 1),
    }
    for name in ("initial_state", "operating_state"):
        function = bundle.program.functions.get(name)
        size = dict(function.inputs).get("w", 0) if function else 0
        expected[name] = ({"w": size}, n)
    unknown = set(bundle.task.tracked) - {channel.name for channel in bundle.states}
    if unknown:
        raise BundleError(f"{bundle.path}: task.tracked names no state: {sorted(unknown)}")
    _check_functions(bundle, expected)
    for name in ("input_scale", "stop_action"):
        if getattr(bundle, name).shape != (m,):
            raise BundleError(f"{bundle.path}: {name} must have {m} numbers")
    stop = bundle.stop_action
    if not np.all((stop >= bundle.input_low) & (stop <= bundle.input_high)):
        raise BundleError(f"{bundle.path}: stop_action {stop} lies outside of the input box")
    if not np.all(bundle.input_scale > 0.0):
        raise BundleError(f"{bundle.path}: every input_scale must be > 0")
    if not np.all(bundle.margin >= NUMERICAL_MARGIN):
        raise BundleError(f"{bundle.path}: every margin must be >= {NUMERICAL_MARGIN}")
    for name in ("class_k", "base_class_k"):
        share = getattr(bundle, name) * bundle.period
        if not 0.0 < share < 1.0:
            raise BundleError(f"{bundle.path}: {name} · period must lie in (0, 1), got {share}")
    if bundle.horizon < 1 or bundle.delay_steps < 0 or not bundle.period > 0.0:
        raise BundleError(f"{bundle.path}: needs horizon >= 1, delay_steps >= 0 and period > 0")
    if bundle.certificate not in (NOMINAL, ROBUST):
        raise BundleError(
            f"{bundle.path}: certificate must be '{NOMINAL}' or '{ROBUST}', "
            f"got '{bundle.certificate}'"
        )
    listed = {JSON_FILE, TABLES_FILE} <= set(bundle.hashes)
    if listed != (bundle.certificate == ROBUST):
        raise BundleError(
            f"{bundle.path}: bundle.yaml says certificate '{bundle.certificate}', but {SUMS} "
            f"{'lists' if listed else 'does not list'} {JSON_FILE} and {TABLES_FILE}; "
            "run safe-rl verify, or build the bundle again"
        )


def _check_functions(bundle: Bundle, expected: Mapping[str, tuple[dict[str, int], int]]) -> None:
    for name, (inputs, outputs) in expected.items():
        function = bundle.program.functions.get(name)
        if function is None:
            raise BundleError(f"{bundle.path}: program.txt has no function '{name}'")
        if dict(function.inputs) != inputs or function.output_size != outputs:
            raise BundleError(
                f"{bundle.path}: bundle.yaml needs {name}{inputs} -> {outputs}, program.txt has "
                f"{name}{dict(function.inputs)} -> {function.output_size}"
            )


def _check_certificate(bundle: Bundle, certificate: Certificate) -> None:
    """The certificate must speak of this program, period, delay and input box."""
    pairs = {
        "program": (certificate.program, bundle.program.hash),
        "period": (certificate.period, bundle.period),
        "delay_steps": (certificate.delay_steps, bundle.delay_steps),
        "input_low": (certificate.input_low.tolist(), bundle.input_low.tolist()),
        "input_high": (certificate.input_high.tolist(), bundle.input_high.tolist()),
    }
    for name, (certified, own) in pairs.items():
        if certified != own:
            raise CertificateError(
                f"{bundle.name} was certified with {name} {certified}, the bundle has {own}; "
                f"run safe-rl verify {bundle.path}"
            )
    n, m, k = len(bundle.states), len(bundle.inputs), len(certificate.error_names)
    p, rows = len(certificate.schedule_low), len(bundle.safe_set_names)
    expected = {
        "difference": ({"x": n, "z": n}, k),
        "retract": ({"z": n, "e": k}, n),
        "schedule": ({"x": n, "u": m}, p),
        "error_map": ({"s": p, "e": k, "v": m, "w": k}, k),
        "shifted": ({"e": k, "d": k}, k),
        "safe_at": ({"z": n, "e": k}, rows),
        "base_point": ({"x": n}, n),
    }
    _check_functions(bundle, expected)
