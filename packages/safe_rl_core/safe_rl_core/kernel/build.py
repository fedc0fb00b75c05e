"""Program -> C source -> shared library, cached by the hash of everything that goes into it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

from safe_rl_core.certificate import EPS
from safe_rl_core.errors import KernelError
from safe_rl_core.kernel.emit import emit_tangents, emit_values, emit_weights
from safe_rl_core.program import Function, Program

#: Functions of the closed loop and the inputs that carry tangents through it.
TANGENT_INPUTS = {
    "step": ("x", "u"),
    "backup_policy": ("x",),
    "safe_set": ("x",),
    "base_set": ("x",),
}
#: Functions of a robust program whose derivatives VALID needs, and the inputs that are varied.
ERROR_INPUTS = {"error_map": ("e", "v"), "safe_at": ("e",), "shifted": ("d",)}
#: What a program needs besides for VALID.
_ERROR_FUNCTIONS = ("difference", "schedule", "base_point")
_FLAGS = (
    "-O3",
    "-std=gnu11",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-unused-function",
)


def lane_width(num_inputs: int) -> int:
    """Numbers per tangent register: the next power of two that holds NU + 1 directions."""
    return 1 << num_inputs.bit_length() if num_inputs + 1 > 2 else 2


def is_robust(program: Program) -> bool:
    """True for a program with error functions; KernelError if it has some but not all."""
    names = (*ERROR_INPUTS, *_ERROR_FUNCTIONS)
    missing = [name for name in names if name not in program.functions]
    if "error_map" in program.functions and missing:
        raise KernelError(
            f"the program has 'error_map' but lacks {', '.join(missing)}; "
            "build the bundle again from a robot with a robust design"
        )
    return not missing


def tangent_lanes(program: Program) -> dict[str, tuple[tuple[str, ...], int, int]]:
    """For each function with tangents: the varied inputs, the directions, the register's width."""
    num_inputs = program.functions["step"].input_size("u")
    found = {
        name: (seeded, num_inputs + 1, lane_width(num_inputs))
        for name, seeded in TANGENT_INPUTS.items()
    }
    if is_robust(program):
        count = program.functions["error_map"].input_size("e") + num_inputs
        found |= {
            name: (seeded, count, lane_width(count - 1)) for name, seeded in ERROR_INPUTS.items()
        }
    return found


def source(program: Program) -> str:
    """The whole C file of a program's kernel."""
    num_inputs = program.functions["step"].input_size("u")
    sizes = {
        "NX": program.functions["step"].input_size("x"),
        "NU": num_inputs,
        "NH": program.functions["safe_set"].output_size,
        "NB": program.functions["base_set"].output_size,
        "LANES": lane_width(num_inputs),
    }
    parts = [f"#define {name} {value}" for name, value in sizes.items()]
    parts += [_text("prelude.c"), emit_weights(program)]
    for function in program.functions.values():
        parts += [emit_values(function), _export_values(function)]
    for name, seeded in TANGENT_INPUTS.items():
        export = _export_tangents(name, [True] * len(seeded))
        parts += [emit_tangents(program.functions[name], seeded), export]
    parts += [_text("rollout.c"), _text("batch.c")]
    if is_robust(program):
        parts += _robust_parts(program)
    return "\n".join(parts)


def _robust_parts(program: Program) -> list[str]:
    """What stands below the nominal kernel: tangents in error and input deviation, and VALID."""
    error_map, lanes = program.functions["error_map"], tangent_lanes(program)
    sizes = {
        "NE": error_map.input_size("e"),
        "NS": error_map.input_size("s"),
        "WIDE": lanes["error_map"][2],
        "EPS": EPS,
    }
    parts = [f"#define {name} {value}" for name, value in sizes.items()]
    parts += [_text("wide.c")]
    for name, seeded in ERROR_INPUTS.items():
        function = program.functions[name]
        varied = [key in seeded for key, _ in function.inputs]
        parts += [emit_tangents(function, seeded), _export_tangents(name, varied)]
    return [*parts, *(_text(name) for name in ("linear.c", "zonotope.c", "robust.c"))]


def library(program: Program) -> Path:
    """Path of the compiled kernel, built on the first call for this program and machine."""
    text = source(program)
    command = (*compiler(), *_FLAGS, *_machine_flags())
    key = hashlib.sha256("\n".join((text, *command, _machine())).encode()).hexdigest()
    path = cache_folder() / f"{key}.so"
    if not path.exists():
        _compile(text, command, path)
    return path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/safe_rl/kernels, by default under ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "safe_rl" / "kernels"


def compiler() -> tuple[str, ...]:
    """The C compiler's command: $CC, cc, gcc, clang, or the ziglang wheel."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return (name,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    raise KernelError(
        "the shield's kernel needs a C compiler and found none ($CC, cc, gcc, clang); install one "
        "(Debian, Ubuntu: 'apt-get install gcc') or run 'pip install ziglang'"
    )


def _compile(text: str, command: tuple[str, ...], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        c_file, built = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        c_file.write_text(text)
        done = subprocess.run(
            [*command, str(c_file), "-o", str(built), "-lm"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise KernelError(
                f"'{' '.join(command)}' could not compile the kernel:\n{done.stderr[-2000:]}\n"
                "set CC to another compiler, or run 'pip install ziglang'"
            )
        os.replace(built, path)


@cache
def _machine_flags() -> tuple[str, ...]:
    flags = _cpu_flags()
    wide = ("-mprefer-vector-width=512",) if "avx512f" in flags else ()
    return ("-march=native", *wide) if platform.machine() == "x86_64" else ("-mcpu=native",)


@cache
def _machine() -> str:
    return f"{platform.machine()} {' '.join(sorted(_cpu_flags()))}"


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    found = [line for line in lines if line.startswith(("flags", "Features"))]
    return frozenset(found[0].split(":", 1)[1].split()) if found else frozenset()


def _text(name: str) -> str:
    return resources.files("safe_rl_core.kernel").joinpath(name).read_text()


def _export_values(function: Function) -> str:
    """The function for one point, and for many points that lie one behind the other.

    Never inlined: each point of many gets the same code, so the same rounding, as one alone.
    """
    name, sizes = function.name, [size for _, size in function.inputs]
    inputs = ", ".join(f"const double *i{k}" for k in range(len(sizes)))
    passed = ", ".join(f"i{k}" for k in range(len(sizes)))
    ahead = ", ".join(f"i{k} + k * {size}L" for k, size in enumerate(sizes))
    return (
        f"EXPORT __attribute__((noinline)) void safe_rl_value_{name}({inputs}, double *out) "
        f"{{ value_{name}({passed}, out); }}\n"
        f"EXPORT void safe_rl_many_{name}(long count, {inputs}, double *out) {{\n"
        "  for (long k = 0; k < count; k++)\n"
        f"    safe_rl_value_{name}({ahead}, out + k * {function.output_size}L);\n}}"
    )


def _export_tangents(name: str, varied: list[bool]) -> str:
    """`varied`: for each input, whether it carries tangents."""
    pairs = list(enumerate(varied))
    inputs = ", ".join(f"const double *i{k}" + f", const lanes *t{k}" * v for k, v in pairs)
    passed = ", ".join(f"i{k}" + f", t{k}" * v for k, v in pairs)
    return (
        f"EXPORT void safe_rl_tangent_{name}({inputs}, double *out, lanes *d_out) "
        f"{{ tangent_{name}({passed}, out, d_out); }}"
    )
