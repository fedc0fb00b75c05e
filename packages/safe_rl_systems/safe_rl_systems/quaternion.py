"""Unit quaternions q = (w, x, y, z), Hamilton product, body to world. All batched: (..., 4)."""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a ∘ b: first the rotation b, then a. (..., 4), (..., 4) -> (..., 4)."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        -1,
    )


def conjugate(q: Tensor) -> Tensor:
    """The inverse rotation. (..., 4) -> (..., 4)."""
    w, x, y, z = q.unbind(-1)
    return torch.stack((w, -x, -y, -z), -1)


def rotate(q: Tensor, v: Tensor) -> Tensor:
    """R(q) v: body to world. (..., 4), (..., 3) -> (..., 3)."""
    t = 2.0 * cross(q[..., 1:4], v)
    return v + q[..., 0:1] * t + cross(q[..., 1:4], t)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """a × b. (..., 3), (..., 3) -> (..., 3)."""
    ax, ay, az = a.unbind(-1)
    bx, by, bz = b.unbind(-1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), -1)


def from_vector(v: Tensor) -> Tensor:
    """The unit quaternion with vector part v and scalar part >= 0. (..., 3) -> (..., 4)."""
    return torch.cat((torch.sqrt(1.0 - (v * v).sum(-1, keepdim=True)), v), -1)


def heading(q: Tensor) -> Tensor:
    """The part of q about the vertical: swing-twist decomposition. (..., 4) -> (..., 4).

    Where it is not defined (thrust axis pointing straight down) the identity is returned.
    """
    zero = torch.zeros_like(q[..., 0])
    length = q[..., 0] * q[..., 0] + q[..., 3] * q[..., 3]
    lost = length < 1e-6
    safe = torch.sqrt(torch.where(lost, torch.ones_like(length), length))
    w = torch.where(lost, torch.ones_like(zero), q[..., 0] / safe)
    return torch.stack((w, zero, zero, torch.where(lost, zero, q[..., 3] / safe)), -1)


def body_z(q: Tensor) -> Tensor:
    """R(q) e3, the body's upward axis in the world frame. (..., 4) -> (..., 3)."""
    w, x, y, z = q.unbind(-1)
    return torch.stack(
        (2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)), -1
    )


def body_x(q: Tensor) -> Tensor:
    """R(q) e1, the body's forward axis in the world frame. (..., 4) -> (..., 3)."""
    w, x, y, z = q.unbind(-1)
    return torch.stack(
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)), -1
    )


def normalised(q: Tensor) -> Tensor:
    """q / |q|. (..., 4) -> (..., 4)."""
    return q / torch.sqrt((q * q).sum(-1, keepdim=True))


def sign(w: Tensor) -> Tensor:
    """-1 for negative w, else +1: never 0, so that a rotation by pi keeps its axis."""
    one = torch.ones_like(w)
    return torch.where(w < 0.0, -one, one)


def vector_error(desired: Tensor, actual: Tensor) -> Tensor:
    """Vector part of desired ∘ actual⁻¹ on the short side, in the world frame. -> (..., 3)."""
    error = multiply(desired, conjugate(actual))
    return sign(error[..., :1]) * error[..., 1:]


def shortest_from_z(direction: Tensor) -> Tensor:
    """The shortest rotation that takes e3 to a unit vector. (..., 3) -> (..., 4).

    Opposite to e3 the axis is not unique; the x axis is taken there.
    """
    dx, dy, dz = direction.unbind(-1)
    w = 1.0 + dz
    opposite = w < 1e-9
    one, zero = torch.ones_like(w), torch.zeros_like(w)
    q = torch.stack(
        (
            torch.where(opposite, zero, w),
            torch.where(opposite, one, -dy),
            torch.where(opposite, zero, dx),
            zero,
        ),
        -1,
    )
    return normalised(q)


def uniform(w: Tensor) -> Tensor:
    """A uniform rotation from three numbers uniform in [-1, 1]. (..., 3) -> (..., 4).

    Source: Shoemake, Uniform random rotations, Graphics Gems III (1992).
    """
    share = 0.5 * (w[..., 0] + 1.0)
    a, b = torch.sqrt(1.0 - share), torch.sqrt(share)
    alpha, beta = torch.pi * w[..., 1], torch.pi * w[..., 2]
    return torch.stack(
        (a * torch.sin(alpha), a * torch.cos(alpha), b * torch.sin(beta), b * torch.cos(beta)), -1
    )
