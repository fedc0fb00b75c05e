"""torch.compile where it works, the plain function where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safe_rl_training.parts import compiling


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    compiling._works.cache_clear()
    yield
    compiling._works.cache_clear()


def double(x: torch.Tensor) -> torch.Tensor:
    return 2.0 * x


def test_without_a_compiler_the_function_stays_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("no C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    assert compiling.compiled(double) is double
    assert compiling.compiled(double) is double
    said = capsys.readouterr().err
    assert said.count("torch.compile does not work here (no C++ compiler found)") == 1


def test_what_is_not_wanted_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    assert compiling.compiled(double, wanted=False) is double


def test_with_a_compiler_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: lambda *x: function(*x))
    found = compiling.compiled(double)
    assert found is not double
    assert found(torch.ones(1)) == 2.0
