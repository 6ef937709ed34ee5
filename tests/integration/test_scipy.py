"""SciPy: ``workers=exe.map``."""

from __future__ import annotations

import numpy as np
import pytest
import scipy_minimum
from scipy.integrate import quad_vec
from scipy.optimize import brute

from executorlib import SingleNodeExecutor

pytestmark = pytest.mark.integration


def test_differential_evolution() -> None:
    result = scipy_minimum.minimum()
    assert result.success
    assert result.x == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)
    assert result.fun < 1e-8


def bowl(point: np.ndarray) -> float:
    return float(np.sum((np.asarray(point) - 0.5) ** 2))


def wave(x: float) -> np.ndarray:
    return np.array([np.sin(x), np.cos(x)])


@pytest.mark.parametrize("block_allocation", [False, True])
def test_brute(block_allocation: bool) -> None:
    with SingleNodeExecutor(max_workers=2, block_allocation=block_allocation) as exe:
        found = brute(bowl, [(0.0, 1.0)] * 2, Ns=3, workers=exe.map, finish=None)
    assert found == pytest.approx([0.5, 0.5])


def test_quad_vec() -> None:
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        integral, _ = quad_vec(wave, 0.0, np.pi, workers=exe.map)
    assert integral == pytest.approx([2.0, 0.0], abs=1e-8)
