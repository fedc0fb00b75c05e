"""Pictures of a plant: the robot by PyBullet's TinyRenderer, the world around it painted here.

TinyRenderer knows neither translucency nor anti-aliasing and costs time per pixel, so it draws
only the robot, in a small window at twice the resolution. Sky, floor, road, ceiling and paths are
computed per pixel from the same camera and compared in depth, which is both faster and prettier.
World ENU, m. Image row 0 is the top. Nothing here touches the physics.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .world import pybullet

Vec3 = tuple[float, float, float]
Array = NDArray[np.float32]

NEAR, FAR = 0.05, 200.0  # m
OVERSAMPLE = 2
SUN = (-0.45, -0.65, 1.0)  # direction to the light, world
ZENITH, HORIZON = (0.33, 0.56, 0.84), (0.90, 0.94, 0.97)
FLOOR, FLOOR_LINE = (0.80, 0.82, 0.83), (0.62, 0.66, 0.70)
GRASS, ASPHALT, PAINT = (0.47, 0.62, 0.38), (0.36, 0.38, 0.41), (0.96, 0.96, 0.93)
GLASS, GLASS_EDGE = (0.93, 0.30, 0.27), (0.80, 0.08, 0.08)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: eye and target (m, world), vertical field of view (deg)."""

    eye: Vec3
    target: Vec3
    fov: float

    def basis(self) -> NDArray[np.float64]:
        """Rows: right, up, forward (unit vectors, world)."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right = right / np.linalg.norm(right)
        return np.array([right, np.cross(right, forward), forward])

    def orbit(self) -> Vec3:
        """Distance (m), yaw and pitch (deg) as PyBullet's window wants them."""
        dx, dy, dz = np.subtract(self.target, self.eye)
        flat = math.hypot(dx, dy)
        return (
            math.hypot(flat, dz),
            math.degrees(math.atan2(-dx, dy)),
            math.degrees(math.atan2(dz, flat)),
        )


@dataclass(frozen=True)
class Body:
    """What TinyRenderer draws: one body of a PyBullet client, within a sphere (m, world)."""

    client: int
    identity: int
    center: Vec3
    radius: float


class Painter:
    """One picture, painted back to front: sky, floor or road, body, lines, glass, finish."""

    def __init__(self, camera: Camera, width: int, height: int) -> None:
        """Prepare the rays of a picture of width x height pixels."""
        self.camera, self.width, self.height = camera, width, height
        self._focal = 0.5 * height / math.tan(math.radians(camera.fov) / 2.0)  # px
        self._basis = camera.basis()
        u = (np.arange(width, dtype=np.float32) + 0.5 - width / 2.0) / self._focal
        v = (height / 2.0 - np.arange(height, dtype=np.float32) - 0.5) / self._focal
        # Ray = forward + u right + v up, so that depth along "forward" scales it.
        right, up, forward = self._basis.astype(np.float32)
        rays = forward[:, None, None] + right[:, None, None] * u + up[:, None, None] * v[:, None]
        self._dx, self._dy, self._dz = rays
        self._rgb: Array = np.empty((height, width, 3), dtype=np.float32)
        self._depth: Array = np.full((height, width), FAR, dtype=np.float32)

    # ---- the world ----------------------------------------------------------------------------

    def sky(self) -> None:
        """A gradient from the horizon up."""
        up = np.clip(self._dz / np.sqrt(self._dx**2 + self._dy**2 + self._dz**2), 0.0, 1.0)
        self._rgb[:] = _mix(HORIZON, ZENITH, (up**0.6)[..., None])

    def floor(self, shadow: tuple[Vec3, float]) -> None:
        """A light floor with a 1 m grid; `shadow` = (position, radius) of what hovers above."""
        hit, depth, x, y, px, py = self._plane(0.0)
        line = np.maximum(_stripes(x, 1.0, 0.012, px), _stripes(y, 1.0, 0.012, py))
        color = _mix(FLOOR, FLOOR_LINE, line[:, None])
        self._lay(hit, depth, self._shade(color, x, y, shadow))

    def road(self, half_width: float, shadow: tuple[Vec3, float]) -> None:
        """A lane along x with solid borders at y = ±half_width (m), grass beyond."""
        hit, depth, x, y, px, py = self._plane(0.0)
        away = np.abs(y)
        mow = 0.06 * _stripes(x, 4.0, 2.0, px)
        color = np.asarray(GRASS, np.float32) * (1.0 + mow)[:, None]
        color = _mix(color, ASPHALT, _step(half_width + 0.25 - away, py)[:, None])
        border = _band(away - half_width, 0.10, py)
        dash = 0.55 * _band(away, 0.07, py) * _stripes(x, 3.0, 1.5, px)
        color = _mix(color, PAINT, np.maximum(border, dash)[:, None])
        self._lay(hit, depth, self._shade(color, x, y, shadow))

    def glass(self, z: float, half: tuple[float, float]) -> None:
        """A translucent horizontal sheet at height z, ±half (m) in x and y, with a 1 m grid."""
        hit, depth, x, y, px, py = self._plane(z)
        inside = _step(half[0] - np.abs(x), px) * _step(half[1] - np.abs(y), py)
        grid = np.maximum(_stripes(x, 1.0, 0.02, px), _stripes(y, 1.0, 0.02, py))
        weight = (depth < self._depth[hit]) * inside * (0.24 + 0.16 * grid)
        self._rgb[hit] += weight[:, None] * (np.asarray(GLASS, np.float32) - self._rgb[hit])
        a, b = half
        corners = [(-a, -b, z), (a, -b, z), (a, b, z), (-a, b, z), (-a, -b, z)]
        self.line(np.array(corners), GLASS_EDGE, 0.015)
        # The line above the loop, which shows from the side who is below and who is not.
        self.line(np.array([(-a, 0.0, z), (a, 0.0, z)]), GLASS_EDGE, 0.035)

    # ---- what moves ---------------------------------------------------------------------------

    def body(self, body: Body) -> None:
        """The robot, true size."""
        place = self._to_camera(np.array([body.center]))[0]
        if place[2] - body.radius < NEAR:
            return
        center = self._pixel(place)
        reach = body.radius * self._focal / (center[2] - body.radius) + 2.0
        x0, x1 = _window(center[0], reach, self.width)
        y0, y1 = _window(center[1], reach, self.height)
        if x1 <= x0 or y1 <= y0:
            return
        color, cover, depth = self._tiny(body, x0, x1, y0, y1)
        view = self._rgb[y0:y1, x0:x1]
        view += cover[..., None] * (color - view)
        np.copyto(self._depth[y0:y1, x0:x1], depth, where=cover > 0.5)

    def line(
        self,
        points: NDArray[np.float64],
        color: Vec3,
        width: float,
        *,
        opacity: float = 1.0,
        fade: bool = False,
    ) -> None:
        """A ribbon of `width` (m) through points (K, 3); `fade` thins it out to its start."""
        cover = np.zeros_like(self._depth)
        depth = np.full_like(self._depth, FAR)
        count = len(points) - 1
        places = self._to_camera(points)
        for i in range(count):
            share = (i + 1) / count if fade else 1.0
            ends = self._clip(places[i], places[i + 1])
            if ends is not None:
                self._segment(*ends, width * share, opacity * share, cover, depth)
        cover *= depth < 1.001 * self._depth + 0.02  # paint on the floor wins over the floor
        rows, columns = np.nonzero(cover)
        there = self._rgb[rows, columns]
        there += cover[rows, columns, None] * (np.asarray(color, np.float32) - there)
        self._rgb[rows, columns] = there
        np.copyto(self._depth, depth, where=cover > 0.5)

    def finish(self) -> NDArray[np.uint8]:
        """The picture, RGB (height, width, 3)."""
        return (np.clip(self._rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

    # ---- geometry -----------------------------------------------------------------------------

    def _plane(self, z: float) -> tuple[NDArray[np.bool_], Array, Array, Array, Array, Array]:
        """Pixels that see the plane at height z: mask; depth, x, y and pixel size of each.

        The pixel size is how much of x and of y (m) one pixel covers, so that patterns can fade
        instead of flicker.
        """
        ex, ey, ez = self.camera.eye
        height = np.float32(z - ez)
        hit = self._dz * height > 0.0
        depth = height / self._dz[hit]
        near = depth < FAR
        hit[hit] = near
        depth = depth[near]
        right, _, forward = np.abs(self._basis).tolist()  # floats keep the arrays float32
        across, along = depth / self._focal, depth**2 / (self._focal * max(abs(z - ez), 1e-3))
        return (
            hit, depth, ex + depth * self._dx[hit], ey + depth * self._dy[hit],
            across * right[0] + along * forward[0], across * right[1] + along * forward[1],
        )  # fmt: skip

    def _to_camera(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """World (K, 3) -> right, up, forward from the eye (K, 3), m."""
        return (points - np.array(self.camera.eye)) @ self._basis.T

    def _clip(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Vec3, Vec3] | None:
        """A segment in camera axes -> its visible ends as (column, row, depth); None if hidden."""
        if a[2] < NEAR and b[2] < NEAR:
            return None
        if min(a[2], b[2]) < NEAR:
            cut = a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2]))
            a, b = (cut, b) if a[2] < NEAR else (a, cut)
        return self._pixel(a), self._pixel(b)

    def _pixel(self, p: NDArray[np.float64]) -> Vec3:
        """Camera axes -> column, row (px), depth (m)."""
        right, up, forward = p.tolist()
        scale = self._focal / forward
        return (self.width / 2.0 + right * scale, self.height / 2.0 - up * scale, forward)

    def _segment(
        self, a: Vec3, b: Vec3, width: float, opacity: float, cover: Array, depth: Array
    ) -> None:
        """Raise `cover` and set `depth` under one piece of a ribbon of `width` (m)."""
        half = width * self._focal / (a[2] + b[2])
        if half < 0.4:  # px; thinner lines fade instead of breaking up
            half, opacity = 0.4, opacity * half / 0.4
        x0, x1 = _window(0.5 * (a[0] + b[0]), 0.5 * abs(a[0] - b[0]) + half + 1.0, self.width)
        y0, y1 = _window(0.5 * (a[1] + b[1]), 0.5 * abs(a[1] - b[1]) + half + 1.0, self.height)
        if x1 <= x0 or y1 <= y0:
            return
        px = np.arange(x0, x1, dtype=np.float32) + (0.5 - a[0])
        py = (np.arange(y0, y1, dtype=np.float32) + (0.5 - a[1]))[:, None]
        dx, dy = b[0] - a[0], b[1] - a[1]
        along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-9), 0.0, 1.0)
        distance = np.hypot(px - along * dx, py - along * dy)
        weight = opacity * np.clip(half + 0.5 - distance, 0.0, 1.0)
        window = cover[y0:y1, x0:x1]
        # 1 / depth is what is linear across a picture.
        here = 1.0 / (1.0 / a[2] + along * (1.0 / b[2] - 1.0 / a[2]))
        np.copyto(depth[y0:y1, x0:x1], here, where=weight > window)
        np.maximum(window, weight, out=window)

    def _lay(self, hit: NDArray[np.bool_], depth: Array, color: Array) -> None:
        self._rgb[hit] = _mix(color, HORIZON, np.clip((depth - 8.0) / 45.0, 0.0, 1.0)[:, None])
        self._depth[hit] = depth

    def _shade(self, color: Array, x: Array, y: Array, shadow: tuple[Vec3, float]) -> Array:
        """A soft round shadow, wider and fainter the higher its body is."""
        (cx, cy, cz), radius = shadow
        spread = radius + 0.10 * max(cz, 0.0)
        dark = 0.55 * (radius / spread) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / spread**2)
        return color * (1.0 - dark)[:, None]

    def _tiny(self, body: Body, x0: int, x1: int, y0: int, y1: int) -> tuple[Array, Array, Array]:
        """TinyRenderer on pixels [x0, x1) x [y0, y1): color, cover (0 … 1) and depth (m)."""
        scale = NEAR / self._focal
        cx, cy = self.width / 2.0, self.height / 2.0
        projection = pybullet.computeProjectionMatrix(
            (x0 - cx) * scale, (x1 - cx) * scale, (cy - y1) * scale, (cy - y0) * scale, NEAR, FAR
        )
        view = pybullet.computeViewMatrix(self.camera.eye, self.camera.target, (0.0, 0.0, 1.0))
        w, h, n = x1 - x0, y1 - y0, OVERSAMPLE
        _, _, rgb, z, owner = pybullet.getCameraImage(
            w * n, h * n, view, projection, shadow=0, lightDirection=SUN,
            lightAmbientCoeff=0.55, lightDiffuseCoeff=0.50, lightSpecularCoeff=0.12,
            renderer=pybullet.ER_TINY_RENDERER, physicsClientId=body.client,
        )  # fmt: skip
        blocks = (h, n, w, n)
        mask = (np.reshape(owner, blocks) == body.identity).astype(np.float32)
        color = np.reshape(np.asarray(rgb, np.float32), (*blocks, 4))[..., :3] / 255.0
        cover = mask.mean(axis=(1, 3))
        color = (color * mask[..., None]).sum(axis=(1, 3))
        color /= np.maximum(mask.sum(axis=(1, 3)), 1.0)[..., None]
        z = np.reshape(z, blocks).min(axis=(1, 3)).astype(np.float32)
        return color, cover, FAR * NEAR / (FAR - (FAR - NEAR) * z)


def _mix(a: Vec3 | Array, b: Vec3 | Array, weight: Array) -> Array:
    a32, b32 = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return a32 + weight * (b32 - a32)


def _step(inside: Array, pixel: Array) -> Array:
    """1 where inside > 0, softened over one pixel (m)."""
    return np.clip(inside / pixel + 0.5, 0.0, 1.0)


def _band(offset: Array, width: float, pixel: Array) -> Array:
    """1 within width/2 of offset = 0; thinner than a pixel it fades instead of breaking up."""
    soft = np.maximum(pixel, 1e-6)
    return np.clip((0.5 * width - np.abs(offset)) / soft + 0.5, 0.0, np.minimum(width / soft, 1.0))


def _stripes(x: Array, spacing: float, width: float, pixel: Array) -> Array:
    """Bands of `width` centred on the multiples of `spacing`."""
    offset = x - spacing * np.round(x / spacing)
    return _band(offset, width, pixel)


def _window(center: float, reach: float, size: int) -> tuple[int, int]:
    return max(math.floor(center - reach), 0), min(math.ceil(center + reach), size)
