"""What every PyBullet plant shares: client life cycle, command delay, sensor noise, pictures.

Time runs in control periods: `step(u)` holds u for one period, inside which the vehicle's own
electronics run at PHYSICS_HZ with the physics. Everything random comes from the seed of `reset`,
in two independent streams (vehicle variation, sensor noise), and each reset builds the world anew:
the same seed and the same commands give the same trajectory bit for bit, in any process.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safe_rl_core.errors import PlantError

from .scene import Body, Camera, Painter
from .world import PHYSICS_HZ, connect, empty, pybullet

TRAIL_S = 1.2  # s of past motion drawn behind the robot

Color = tuple[float, float, float]


class BulletPlant(ABC):
    """A vehicle in its own PyBullet world.

    Args:
        seed: the seed that `reset()` uses when it is called without one.
        gui: open PyBullet's window (needs a display); pictures from `render` do not need it.
        noise: scale of the sensor noise; 1.0 = `NOISE_STD`, Gaussian, independent per sample.
        delay_steps: whole control periods between a command and the moment it acts.
        variation: scale of the per-seed differences between vehicles; 0.0 = nominal vehicle.
    """

    robot: ClassVar[str]
    period: ClassVar[float]
    state_names: ClassVar[tuple[str, ...]]
    input_names: ClassVar[tuple[str, ...]]
    NOISE_STD: ClassVar[dict[str, float]]  # standard deviation per measured quantity, SI
    body_radius: ClassVar[float]  # m, sphere that holds everything drawn

    def __init__(
        self,
        *,
        seed: int = 0,
        gui: bool = False,
        noise: float = 0.0,
        delay_steps: int = 0,
        variation: float = 1.0,
    ) -> None:
        """Check the options and start a physics server; the world is built by `reset`."""
        self._default_seed = _check_seed(seed)
        for name, value in (("noise", noise), ("variation", variation)):
            if not (math.isfinite(value) and value >= 0.0):
                raise PlantError(f"{name} must be a finite number >= 0, got {value!r}")
        if not (isinstance(delay_steps, int) and delay_steps >= 0):
            raise PlantError(f"delay_steps must be an integer >= 0, got {delay_steps!r}")
        self.noise, self.delay_steps, self.variation = float(noise), delay_steps, float(variation)
        self.gui = bool(gui)
        self.substeps = round(self.period * PHYSICS_HZ)
        self.vehicle: dict[str, float] = {}  # what this seed drew: scale factors around 1
        self._paths: list[tuple[NDArray[np.float64], Color]] = []
        self._trail: deque[tuple[float, float, float]] = deque(maxlen=round(TRAIL_S / self.period))
        self._queue: deque[tuple[float, ...]] = deque()
        self._body = -1  # PyBullet's number of the vehicle
        self._steps = -1  # -1: not reset yet
        self._client: int = connect(self.gui)

    # ---- the plant protocol -------------------------------------------------------------------

    def reset(
        self,
        seed: int | None = None,
        x0: ArrayLike | None = None,
        u0: ArrayLike | None = None,
    ) -> NDArray[np.float64]:
        """Start a new flight or drive at time 0. Returns the measured state (n,).

        Args:
            seed: draws the vehicle and its noise; None = the seed given at construction.
            x0: true state (n,) to start from; None = the plant's rest state.
            u0: input (m,) that the vehicle is taken to have been holding up to now: actuators
                start in trim with it and the delay line is filled with it. None = `neutral`.
        """
        self._check_open()
        seed = self._default_seed if seed is None else _check_seed(seed)
        start = self.rest_state if x0 is None else self._vector("x0", x0, self.state_names)
        held = self.neutral if u0 is None else self._vector("u0", u0, self.input_names)
        variation_rng = np.random.default_rng([seed, 0])
        self._noise_rng = np.random.default_rng([seed, 1])
        empty(self._client)
        self._build(variation_rng)
        self._start(start, held)
        self._steps = 0
        self._trail.clear()
        self._trail.append(self._trail_point())
        if self.gui:
            self._draw_gui()
        return self._measure()

    def step(self, u: ArrayLike) -> NDArray[np.float64]:
        """Hold u (m,) for one period, after the delay. Returns the measured state (n,)."""
        self._check_running()
        return self._apply(self._to_command(self._vector("u", u, self.input_names)))

    @property
    def state(self) -> NDArray[np.float64]:
        """True state (n,), in the order of `state_names`."""
        self._check_running()
        return self._true_state()

    @property
    def time(self) -> float:
        """Seconds since reset."""
        self._check_running()
        return self._steps * self.period

    def close(self) -> None:
        """Disconnect from PyBullet; safe to call twice."""
        if self._client >= 0:
            pybullet.disconnect(physicsClientId=self._client)
            self._client = -1

    def __enter__(self) -> "BulletPlant":
        """Use as `with make_plant(...) as plant:`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close on the way out."""
        self.close()

    # ---- pictures -----------------------------------------------------------------------------

    def draw_path(self, points: ArrayLike, color: Color = (0.95, 0.62, 0.10)) -> None:
        """Show a polyline (K, 3) or (K, 2, on the ground), m, world, in every later picture."""
        array = np.asarray(points, dtype=np.float64)
        if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] not in (2, 3):
            raise PlantError(f"draw_path expects points of shape (K, 2|3), got {array.shape}")
        if not np.isfinite(array).all():
            raise PlantError("draw_path expects finite points; drop the nan or inf rows")
        if array.shape[1] == 2:
            array = np.column_stack([array, np.full(len(array), 0.01)])
        self._paths.append((array, color))
        if self.gui:
            self._draw_gui_line(array, color)

    def clear_paths(self) -> None:
        """Forget every path given to `draw_path`."""
        self._paths.clear()

    def render(
        self, width: int = 640, height: int = 360, view: str = "scene"
    ) -> NDArray[np.uint8]:
        """Picture of the world now, RGB (height, width, 3); the robot is drawn at true size.

        Args:
            width: pixels.
            height: pixels.
            view: "scene" frames the task, "chase" follows the robot from behind.
        """
        self._check_running()
        if view not in ("scene", "chase"):
            raise PlantError(f'view must be "scene" or "chase", got {view!r}')
        if width < 16 or height < 16:
            raise PlantError(f"render needs at least 16 x 16 pixels, got {width} x {height}")
        painter = Painter(self._camera(view), width, height)
        self._paint_background(painter)
        painter.body(Body(self._client, self._body, self._position(), self.body_radius))
        for points, color in self._paths:
            painter.line(points, color, 0.022, opacity=0.9)
        painter.line(np.array(self._trail), (0.10, 0.55, 0.95), 0.035, fade=True)
        self._paint_foreground(painter)
        return painter.finish()

    # ---- what a vehicle fills in --------------------------------------------------------------

    @property
    @abstractmethod
    def rest_state(self) -> NDArray[np.float64]:
        """Default start state (n,)."""

    @property
    @abstractmethod
    def neutral(self) -> NDArray[np.float64]:
        """Input (m,) that fills the delay line at reset."""

    @property
    @abstractmethod
    def angular_velocity(self) -> NDArray[np.float64]:
        """True body rates (3,), rad/s, body FLU."""

    @abstractmethod
    def _build(self, rng: np.random.Generator) -> None:
        """Load the bodies and draw this seed's vehicle into `self.vehicle`."""

    @abstractmethod
    def _start(self, x0: NDArray[np.float64], u0: NDArray[np.float64]) -> None:
        """Place the vehicle at x0 with actuators in trim for u0; fill `self._queue`."""

    @abstractmethod
    def _to_command(self, u: NDArray[np.float64]) -> tuple[float, ...]:
        """Input -> what travels to the vehicle's electronics."""

    @abstractmethod
    def _advance(self, command: tuple[float, ...]) -> None:
        """One control period of electronics, actuators and physics."""

    @abstractmethod
    def _true_state(self) -> NDArray[np.float64]: ...

    @abstractmethod
    def _add_noise(self, x: NDArray[np.float64], unit: NDArray[np.float64]) -> None:
        """Disturb x in place with independent standard normal numbers `unit`, times noise."""

    @abstractmethod
    def _position(self) -> tuple[float, float, float]: ...

    def _trail_point(self) -> tuple[float, float, float]:
        return self._position()

    @abstractmethod
    def _camera(self, view: str) -> Camera: ...

    @abstractmethod
    def _paint_background(self, painter: Painter) -> None: ...

    @abstractmethod
    def _paint_foreground(self, painter: Painter) -> None: ...

    # ---- shared machinery ---------------------------------------------------------------------

    def _apply(self, command: tuple[float, ...]) -> NDArray[np.float64]:
        self._queue.append(command)
        self._advance(self._queue.popleft())
        self._steps += 1
        self._trail.append(self._trail_point())
        return self._measure()

    def _measure(self) -> NDArray[np.float64]:
        x = self._true_state()
        if self.noise > 0.0:
            unit = self._noise_rng.standard_normal(len(x))
            self._add_noise(x, unit * self.noise)
        self._measured = x
        return x.copy()

    def _factor(self, rng: np.random.Generator, half_width: float) -> float:
        """Uniform scale factor 1 ± half_width·variation."""
        return 1.0 + self.variation * half_width * float(rng.uniform(-1.0, 1.0))

    def _vector(self, what: str, value: ArrayLike, names: Sequence[str]) -> NDArray[np.float64]:
        try:
            array = np.array(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise PlantError(
                f"{self.robot}: {what} must be {len(names)} numbers, got {value!r}"
            ) from error
        if array.shape != (len(names),):
            raise PlantError(
                f"{self.robot}: {what} must have shape ({len(names)},) = ({', '.join(names)}), "
                f"got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise PlantError(
                f"{self.robot}: {what} must be finite, got {array.tolist()}; "
                "a plant has no fallback: put the shield in front of it"
            )
        return array

    def _check_open(self) -> None:
        if self._client < 0:
            raise PlantError(f"this {self.robot} plant is closed; make a new one")

    def _check_running(self) -> None:
        self._check_open()
        if self._steps < 0:
            raise PlantError(f"call reset() on the {self.robot} plant first")

    # ---- PyBullet's own window ----------------------------------------------------------------

    def _draw_gui(self) -> None:
        camera = self._camera("scene")
        distance, yaw, pitch = camera.orbit()
        pybullet.resetDebugVisualizerCamera(
            distance, yaw, pitch, list(camera.target), physicsClientId=self._client
        )
        for points, color in [*self._gui_lines(), *self._paths]:
            self._draw_gui_line(points, color)

    def _gui_lines(self) -> list[tuple[NDArray[np.float64], Color]]:
        """Scene lines for the window; pictures paint them themselves."""
        return []

    def _draw_gui_line(self, points: NDArray[np.float64], color: Color) -> None:
        for a, b in zip(points[:-1].tolist(), points[1:].tolist(), strict=True):
            pybullet.addUserDebugLine(a, b, list(color), 2.0, physicsClientId=self._client)


def _check_seed(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise PlantError(f"seed must be an integer >= 0, got {seed!r}")
    return int(seed)
