"""Message definitions as MCAP wants them: the `.msg` text of a type and of every type inside it.

ROS-free: reads `share/<package>/msg/<Type>.msg` under the prefixes of AMENT_PREFIX_PATH and under
the Python environment itself, where pip-installed ROS packages put them.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from safe_rl_core.errors import SafeRLError

SEPARATOR = "=" * 80
PRIMITIVES = frozenset(
    {"bool", "byte", "char", "string", "wstring", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
# A field: type, with string bound and array suffix, then a name; a constant has "=" after it.
FIELD = re.compile(r"^([A-Za-z][\w/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+[A-Za-z]\w*\s*(?!=)")


def definition(type_name: str) -> str:
    """Definition of "package/msg/Type" with its dependencies, in the `ros2msg` encoding."""
    package, name = _split(type_name, "")
    texts = {f"{package}/{name}": _text(package, name)}
    queue = list(texts)
    while queue:
        owner = queue.pop(0)
        for inner in _field_types(texts[owner], owner.split("/")[0]):
            if inner not in texts:
                texts[inner] = _text(*inner.split("/"))
                queue.append(inner)
    (_, first), *others = texts.items()
    return first + "".join(f"\n{SEPARATOR}\nMSG: {key}\n{text}" for key, text in others)


def _field_types(text: str, package: str) -> list[str]:
    """Types of the fields that are messages themselves, as "package/Type"."""
    found = []
    for line in text.splitlines():
        match = FIELD.match(line.split("#", 1)[0].strip())
        if match and match[1] not in PRIMITIVES:
            found.append("/".join(_split(match[1], package)))
    return found


def _split(type_name: str, package: str) -> tuple[str, str]:
    """("package", "Type") of a type as written in a .msg file of `package`."""
    parts = type_name.split("/")
    if len(parts) > 1:
        return parts[0], parts[-1]
    return ("std_msgs" if type_name == "Header" else package), type_name


def _text(package: str, name: str) -> str:
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    for prefix in (*prefixes, sys.prefix):
        path = Path(prefix) / "share" / package / "msg" / f"{name}.msg"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise SafeRLError(
        f"no definition of {package}/msg/{name}: expected share/{package}/msg/{name}.msg under "
        f"AMENT_PREFIX_PATH ({', '.join(prefixes) or 'empty'}) or {sys.prefix}; install the ROS "
        f"package {package} or source its setup file"
    )
