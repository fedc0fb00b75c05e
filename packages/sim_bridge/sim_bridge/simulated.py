"""The plant of a simulated run, by name. ROS-free."""

from __future__ import annotations

from typing import Any

from safe_rl_core.assumed import AssumedPlant
from safe_rl_core.bundle import Bundle
from safe_rl_core.errors import PlantError
from safe_rl_core.loop import ModelPlant


def make(bundle: Bundle, plant: str, **options: Any) -> Any:
    """Plant of a bundle: "bullet" (full physics), "model" (the bundle's own step), or "assumed"
    (the model on the edge of what the bundle's certificate assumes).

    Options: seed, gui, noise, delay_steps, of which only bullet has the last three; adversary and
    scale of assumed.
    """
    assumed = {name: options.pop(name) for name in ("adversary", "scale") if name in options}
    if plant in ("model", "assumed"):
        unusable = [name for name in ("gui", "noise", "delay_steps") if options.get(name)]
        if unusable:
            raise PlantError(f"plant {plant} has no {', '.join(unusable)}; use plant bullet")
        return ModelPlant(bundle) if plant == "model" else AssumedPlant(bundle, **assumed)
    if plant != "bullet":
        raise PlantError(f"plant must be bullet, model or assumed, got {plant!r}")
    from sim_bridge.plants import make_plant  # PyBullet is heavy, and the model needs none of it

    made = make_plant(bundle.robot, **options)
    names = tuple(channel.name for channel in bundle.states)
    if made.state_names != names or abs(made.period - bundle.period) > 1e-9:
        raise PlantError(
            f"plant bullet has states {made.state_names} at {made.period} s, bundle "
            f"{bundle.name} has {names} at {bundle.period} s; use plant model"
        )
    return made
