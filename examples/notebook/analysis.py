"""A script as it grows in a notebook: what it defines and changes as it goes is what the workers see.

Its functions and classes live in ``__main__``, which no worker can import. `trajectory` is a module in the same folder
that is not installed anywhere: workers import it from there.
"""

# %%
import dataclasses
import sys
from collections.abc import Callable

import trajectory

from executorlib import SingleNodeExecutor, get_item_from_future

# %%
gravity = 9.81
exe = SingleNodeExecutor(max_workers=2)


# %%
@dataclasses.dataclass
class Throw:
    speed: float
    angle: float


def distance(throw: Throw) -> float:
    return trajectory.distance(throw.speed, throw.angle, gravity)


on_earth = exe.submit(distance, Throw(speed=20.0, angle=45.0)).result()
print(f"on the earth {on_earth:.1f} m")

# %%
# Changed in a later cell: the next call sees it.
gravity = 1.62
on_the_moon = exe.submit(distance, Throw(20.0, 45.0)).result()
print(f"on the moon {on_the_moon:.1f} m")


# %%
# Defined once more under the same name, and with a closure.
def best_of(angles: list[float]) -> Callable[[float], dict[str, float]]:
    def distance(speed: float) -> dict[str, float]:
        throws = [Throw(speed, angle) for angle in angles]
        best = max(throws, key=lambda t: trajectory.distance(t.speed, t.angle, gravity))
        return {"angle": best.angle, "distance": trajectory.distance(best.speed, best.angle, gravity)}

    return distance


found = exe.submit(best_of([10.0, 30.0, 50.0, 70.0]), 20.0)
back = exe.submit(lambda angle: Throw(0.0, angle), get_item_from_future(found, "angle")).result()
print(f"best angle {back.angle:.0f} degrees, as a {type(back).__name__}")

# %%
exe.shutdown()
right = abs(on_earth - 40.77) < 0.01 and abs(on_the_moon - 246.91) < 0.01
sys.exit(0 if right and isinstance(back, Throw) and back.angle == 50.0 else 1)
