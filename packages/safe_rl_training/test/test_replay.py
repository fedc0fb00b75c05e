"""The replay: what follows what, what cannot be drawn, and a resume."""

import numpy as np
import pytest
import torch
from safe_rl_core.errors import ModelError
from safe_rl_training.envs import Transition
from safe_rl_training.parts.replay import Replay

COUNT, SIZES = 3, (2, 1, 4)


def period(k: int, ended: bool = False) -> Transition:
    """A period whose every number says which one it is: k for all robots, and the robot."""

    def filled(*shape: int) -> np.ndarray:
        robots = np.arange(COUNT).reshape(COUNT, *(1 for _ in shape)) / 10.0
        return np.broadcast_to(k + robots, (COUNT, *shape)).copy()

    return Transition(
        observation=filled(2).astype(np.float32),
        predicted=filled(5),
        proposed=filled(1),
        action=filled(1),
        slope=filled(1, 1),
        backup=filled(1),
        reward=filled(),
        next_observation=filled(2).astype(np.float32) + 1,
        next_predicted=filled(5) + 1,
        ended=np.full(COUNT, ended),
        verdict=np.zeros(COUNT, dtype=np.int8),
        blend=np.ones(COUNT),
        normals=filled(4, 1).astype(np.float32),
        offsets=filled(4).astype(np.float32),
        returns=filled(),
    )


def filled(length: int, periods: int, ends: tuple[int, ...] = (), **options: bool) -> Replay:
    replay = Replay(length, COUNT, SIZES, **{"with_ended": False, **options})
    for k in range(periods):
        replay.add(period(k, k in ends))
    return replay


@pytest.mark.parametrize("periods", [4, 7, 8, 19])
def test_draws_every_transition_with_its_successor(periods: int) -> None:
    batch = filled(7, periods).sample(3000, torch.Generator().manual_seed(0))
    here, there = batch.scene.observation[:3000, 0], batch.scene.observation[3000:, 0]
    torch.testing.assert_close(there, here + 1.0)
    for part in (batch.action[:, 0], batch.reward, batch.scene.normals[:3000, 2, 0]):
        torch.testing.assert_close(part, here)
    oldest = max(0, periods - 7)
    expected = {round(k + r / 10, 1) for k in range(oldest, periods - 1) for r in range(COUNT)}
    assert {round(float(v), 1) for v in here} == expected


def test_last_periods_of_episodes_are_drawn_only_where_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    without = filled(9, 9, ends=(2, 6)).sample(2000, generator)
    assert not bool(without.ended.any())
    assert {int(v) for v in without.reward} == {0, 1, 3, 4, 5, 7}
    with_ = filled(9, 9, ends=(2, 6), with_ended=True).sample(2000, generator)
    assert {int(v) for v in with_.reward[with_.ended]} == {2, 6}


def test_resume_draws_the_same(tmp_path: object) -> None:
    first = filled(5, 8)
    torch.save(first.state_dict(), f"{tmp_path}/replay.pt")
    second = Replay(5, COUNT, SIZES, with_ended=False)
    second.load_state_dict(torch.load(f"{tmp_path}/replay.pt", weights_only=True))
    for replay in (first, second):
        replay.add(period(8))
    a, b = (r.sample(64, torch.Generator().manual_seed(3)) for r in (first, second))
    torch.testing.assert_close(a.scene.normals, b.scene.normals, rtol=0.0, atol=0.0)
    torch.testing.assert_close(a.reward, b.reward, rtol=0.0, atol=0.0)


def test_misuse_is_told() -> None:
    with pytest.raises(ModelError, match="at least 2 periods"):
        Replay(1, COUNT, SIZES, with_ended=False)
    with pytest.raises(ModelError, match="collect at least 2"):
        filled(5, 1).sample(4, torch.Generator())
    with pytest.raises(ModelError, match="does not fit"):
        Replay(5, COUNT + 1, SIZES, with_ended=False).load_state_dict(filled(5, 3).state_dict())
    with pytest.raises(ModelError, match="every kept period ends"):
        filled(5, 5, ends=(0, 1, 2, 3)).sample(4, torch.Generator())
