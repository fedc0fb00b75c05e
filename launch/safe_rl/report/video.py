"""A flight as a GIF: the recorded true states, set one by one into the PyBullet world and drawn.

Nothing is simulated again. The world, the vehicle and the camera are those of the `bullet` plant;
the path, the verdict and the numbers are painted over them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import PlantError
from safe_rl_core.record import FlightLog

from safe_rl.report import style
from safe_rl.report.geometry import channel_index, reference_path, true_margins
from safe_rl.report.verdicts import runs, verdict_names

SIZE = (480, 360)  # px
MAX_FRAMES = 135
DELAYS_MS = (40, 80)  # shortest and longest time a frame stands
MAX_SPEED = 2.0  # at most this much faster than the flight was
TAIL_S = {"quadrotor": 2.0, "unicycle": 6.0}  # s of path shown behind the robot
SIGHT, SPACING = 18.0, 0.12  # m: how far the reference is drawn, and in which pieces
COLOURS = 192
BAR = 7  # px, the verdict bar at the bottom
LIFT = 0.10  # m above the ground at which a path is drawn: lower, the road hides parts of it


def render_flight(bundle: Bundle, log: FlightLog, path: str | Path) -> Path:
    """Write the flight to `path` (.gif) and return it.

    Raises `PlantError` when the log's states are not those of the bullet plant's vehicle.
    """
    from sim_bridge.plants import make_plant

    plant = make_plant(bundle.robot, variation=0.0)
    try:
        names = tuple(channel.name for channel in bundle.states)
        if names != tuple(plant.state_names):
            raise PlantError(
                f"cannot draw {bundle.name}: its states are {', '.join(names)}, the bullet "
                f"{bundle.robot} has {', '.join(plant.state_names)}; use the 'model' variant"
            )
        frames, delay = _frames(plant, bundle, log)
    finally:
        plant.close()
    path = Path(path)
    palette = _shared_palette(frames)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    indexed[0].save(
        path, save_all=True, append_images=indexed[1:], duration=delay, loop=0, optimize=False
    )
    return path


def _frames(plant: Any, bundle: Bundle, log: FlightLog) -> tuple[list[Image.Image], int]:
    """The pictures, and how long each stands (ms)."""
    stride, shown = _shown_steps(bundle, log)
    real_ms = 1e3 * stride * bundle.period
    delay = 10 * round(min(max(real_ms, DELAYS_MS[0]), DELAYS_MS[1]) / 10)
    hud = _Hud(bundle, log, real_ms / delay)
    position = _positions(bundle, log.x_true)
    reference = _positions(bundle, reference_path(bundle, log.t[-1]))
    frames = []
    for step in shown:
        plant.reset(0, x0=log.x_true[step])
        plant.clear_paths()
        near = np.linalg.norm(reference - position[step], axis=1) < SIGHT
        if near.sum() > 1:
            plant.draw_path(_dense(reference[near]), color=(0.55, 0.60, 0.66))
        _draw_tail(plant, bundle, position, hud.verdicts, step)
        picture = Image.fromarray(plant.render(*SIZE))
        frames.append(hud.paint(picture, step))
    return frames, delay


def _shown_steps(bundle: Bundle, log: FlightLog) -> tuple[int, range]:
    """Periods between two pictures, and the periods shown: of a long flight its tightest part."""
    steps = len(log.t)
    fastest = max(1, int(MAX_SPEED * DELAYS_MS[1] / (1e3 * bundle.period)))
    stride = min(math.ceil(steps / MAX_FRAMES), fastest)
    count = min(steps, stride * MAX_FRAMES)
    worst = int(np.argmin(true_margins(bundle, log.x_true[:-1])[0]))
    first = min(max(0, worst - count // 2), steps - count)
    return stride, range(first, first + count, stride)


def _positions(bundle: Bundle, states: NDArray[np.float64]) -> NDArray[np.float64]:
    """Position (K, 3) of states (K, n), m; a little above the ground for a ground robot."""
    columns = [channel_index(bundle, name) for name in ("px", "py")]
    names = [channel.name for channel in bundle.states]
    height = states[:, names.index("pz")] if "pz" in names else np.full(len(states), LIFT)
    return np.column_stack([states[:, columns], height])


def _draw_tail(
    plant: Any, bundle: Bundle, position: NDArray[np.float64], verdicts: list[str], step: int
) -> None:
    """The last seconds of the path, each stretch in the colour of its verdict."""
    first = max(0, step - round(TAIL_S[bundle.robot] / bundle.period))
    for start, stop, name in runs(verdicts[first:step]):
        points = _dense(position[first + start : first + stop + 1])
        plant.draw_path(points, color=_rgb01(style.verdict_colour(name)))


def _dense(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The polyline (K, 3) resampled at SPACING m: the renderer gives a segment one depth only."""
    arc = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    samples = np.linspace(0.0, arc[-1], max(2, math.ceil(arc[-1] / SPACING)))
    return np.column_stack([np.interp(samples, arc, column) for column in points.T])


def _rgb01(colour: str) -> tuple[float, float, float]:
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return red / 255.0, green / 255.0, blue / 255.0


def _shared_palette(frames: list[Image.Image]) -> Image.Image:
    """One palette for all frames: they stay small and do not flicker."""
    picks = frames[:: max(1, len(frames) // 8)][:8]
    swatches = [*style.VERDICT_COLOURS.values(), style.DANGER, "white"]
    strip = SIZE[1] // 8  # enough pixels to earn a place in the palette
    sheet = Image.new("RGB", (SIZE[0], SIZE[1] * len(picks) + strip * len(swatches)))
    for index, frame in enumerate(picks):
        sheet.paste(frame, (0, SIZE[1] * index))
    for index, colour in enumerate(swatches):
        top = SIZE[1] * len(picks) + strip * index
        sheet.paste(ImageColor.getrgb(colour), (0, top, SIZE[0], top + strip))
    return sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


class _Hud:
    """What is written over a picture: time, margin, verdict, and the bar of all verdicts."""

    def __init__(self, bundle: Bundle, log: FlightLog, speed: float) -> None:
        self.verdicts = verdict_names(log)
        self._t = log.t
        self._margin, worst = true_margins(bundle, log.x_true)
        self._row = [bundle.safe_set_names[index].replace("_", " ") for index in worst]
        self._speed = "" if abs(speed - 1.0) < 0.02 else f"  x{speed:.2g}"
        self._font = ImageFont.load_default(size=15)
        self._small = ImageFont.load_default(size=13)
        bar = Image.new("RGB", (SIZE[0], BAR))
        paint = ImageDraw.Draw(bar)
        scale = SIZE[0] / len(self.verdicts)
        for start, stop, name in runs(self.verdicts):
            paint.rectangle((start * scale, 0, stop * scale, BAR), fill=style.verdict_colour(name))
        for step in np.flatnonzero(self._margin[:-1] < 0.0):
            paint.rectangle((step * scale, 0, (step + 1) * scale, BAR), fill=style.DANGER)
        self._bar = bar

    def paint(self, picture: Image.Image, step: int) -> Image.Image:
        """The picture (RGB) with everything on it."""
        draw = ImageDraw.Draw(picture, "RGBA")
        verdict, margin = self.verdicts[step], float(self._margin[step])
        draw.rounded_rectangle((10, 10, 128, 36), 8, fill=style.verdict_colour(verdict))
        draw.text((69, 23), verdict, font=self._font, fill="white", anchor="mm")
        text = f"margin {margin:+.3f}  {self._row[step]}"
        box = draw.textbbox((138, 23), text, font=self._font, anchor="lm")
        ground = (255, 255, 255, 205) if margin >= 0.0 else (193, 18, 31, 235)
        draw.rounded_rectangle((box[0] - 7, 10, box[2] + 7, 36), 8, fill=ground)
        ink = style.INK if margin >= 0.0 else "white"
        draw.text((138, 23), text, font=self._font, fill=ink, anchor="lm")
        clock = f"t {self._t[step]:5.2f} s{self._speed}"
        box = draw.textbbox((SIZE[0] - 17, 23), clock, font=self._small, anchor="rm")
        draw.rounded_rectangle((box[0] - 7, 10, SIZE[0] - 10, 36), 8, fill=(255, 255, 255, 205))
        draw.text((SIZE[0] - 17, 23), clock, font=self._small, fill=style.INK, anchor="rm")
        picture.paste(self._bar, (0, SIZE[1] - BAR))
        here = SIZE[0] * step / len(self.verdicts)
        draw.rectangle((here, SIZE[1] - BAR - 5, here + 2, SIZE[1]), fill=style.INK)
        return picture
