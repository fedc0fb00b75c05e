"""A PyBullet world: connect, empty it, put a floor and a vehicle in.

The one place where PyBullet is imported, so that its absence is explained once.
"""

import os
from pathlib import Path

from safe_rl_core.errors import PlantError

try:
    import pybullet
except ModuleNotFoundError as error:
    raise PlantError(
        "the bullet plants need PyBullet, which is not installed; "
        "run: pip install pybullet==3.2.7 (prebuilt for Python 3.10 and 3.11)"
    ) from error

PHYSICS_HZ = 500
PHYSICS_DT = 1.0 / PHYSICS_HZ
GRAVITY = 9.81  # m/s²
URDF_DIR = Path(__file__).parent / "urdf"


def connect(gui: bool) -> int:
    """A physics server of our own; returns its client number."""
    if gui and os.name == "posix" and not os.environ.get("DISPLAY"):
        # PyBullet would end the whole process here.
        raise PlantError("gui=True needs a display and DISPLAY is not set; use gui=False")
    client = pybullet.connect(pybullet.GUI if gui else pybullet.DIRECT)
    if client < 0:
        raise PlantError("PyBullet did not start a physics server; close other plants first")
    return client


def empty(client: int) -> None:
    """Remove everything: warm-started contacts of the last run must not reach into the next."""
    pybullet.resetSimulation(physicsClientId=client)
    pybullet.setGravity(0.0, 0.0, -GRAVITY, physicsClientId=client)
    pybullet.setPhysicsEngineParameter(
        fixedTimeStep=PHYSICS_DT,
        numSubSteps=0,
        deterministicOverlappingPairs=1,
        enableConeFriction=1,
        physicsClientId=client,
    )


def add_floor(client: int, friction: float, visible: bool) -> None:
    """Level ground at z = 0 for contact. Pictures paint their own, PyBullet's window needs it."""
    shape = pybullet.createCollisionShape(
        pybullet.GEOM_PLANE, planeNormal=[0, 0, 1], physicsClientId=client
    )
    look = -1  # the plane itself
    if not visible:
        # A speck: without any visual PyBullet draws the plane around the robot.
        look = pybullet.createVisualShape(
            pybullet.GEOM_SPHERE, radius=1e-3, physicsClientId=client
        )
    floor = pybullet.createMultiBody(0.0, shape, look, physicsClientId=client)
    pybullet.changeDynamics(
        floor, -1, lateralFriction=friction, restitution=0.0, physicsClientId=client
    )


def add_vehicle(client: int, name: str) -> int:
    """Load one of our URDF files; returns PyBullet's body number."""
    # Inertia from the file: PyBullet would otherwise replace it by that of the collision hull.
    return pybullet.loadURDF(
        str(URDF_DIR / name), flags=pybullet.URDF_USE_INERTIA_FROM_FILE, physicsClientId=client
    )
