"""A module beside a notebook."""

import math


def distance(speed: float, angle: float, gravity: float) -> float:
    """How far a stone flies, in metres: speed in m/s, angle in degrees, gravity in m/s^2."""
    return speed**2 * math.sin(2.0 * math.radians(angle)) / gravity
