"""Plants in full physics: the stand-in for reality that the shield never reads.

ROS-free: numpy and PyBullet only, so that the simulator node and the loop without ROS use the
same vehicle. `make_plant("quadrotor" | "unicycle", ...)` returns an object with the plant
protocol `.period`, `.reset(seed)`, `.step(u)`, `.state`, `.time`, `.render(width, height)`.
"""

from safe_rl_core.errors import PlantError

from .base import BulletPlant
from .quadrotor import QuadrotorPlant
from .unicycle import UnicyclePlant

PLANTS: dict[str, type[BulletPlant]] = {"quadrotor": QuadrotorPlant, "unicycle": UnicyclePlant}


def make_plant(
    robot: str,
    *,
    seed: int = 0,
    gui: bool = False,
    noise: float = 0.0,
    delay_steps: int = 0,
    variation: float = 1.0,
) -> BulletPlant:
    """The PyBullet plant of a robot ("quadrotor" or "unicycle"); options as in `BulletPlant`."""
    if robot not in PLANTS:
        raise PlantError(
            f"no plant for robot {robot!r}; expected one of {', '.join(sorted(PLANTS))}"
        )
    return PLANTS[robot](
        seed=seed, gui=gui, noise=noise, delay_steps=delay_steps, variation=variation
    )


__all__ = ["PLANTS", "BulletPlant", "QuadrotorPlant", "UnicyclePlant", "make_plant"]
