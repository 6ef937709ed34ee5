"""pipefunc: submits each element of a map, asks for `max_workers`, and awaits futures."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pipefunc_pipeline
import pytest
from pipefunc import Pipeline, pipefunc

from executorlib import SingleNodeExecutor

pytestmark = [
    pytest.mark.integration,
    # pipefunc's own, about what is not installed or about its future.
    pytest.mark.filterwarnings("ignore::UserWarning:pipefunc", "ignore::DeprecationWarning:pipefunc"),
]


def test_one_executor() -> None:
    assert pipefunc_pipeline.with_one_executor() == [2, 5, 10]


def test_an_executor_for_each_output() -> None:
    assert pipefunc_pipeline.with_an_executor_for_each_output() == [2, 5, 10]


@pytest.mark.parametrize("block_allocation", [False, True])
def test_a_reduction_after_a_map(block_allocation: bool) -> None:
    @pipefunc(output_name="total")
    def add_up(z: np.ndarray) -> int:
        return int(sum(z))

    pipeline = Pipeline([pipefunc_pipeline.f, pipefunc_pipeline.g, add_up])
    with SingleNodeExecutor(max_workers=2, block_allocation=block_allocation) as exe:
        results = pipeline.map({"x": list(range(6))}, executor=exe, show_progress=False)
    assert results["total"].output == sum(x**2 + 1 for x in range(6))


def test_map_async() -> None:
    async def run() -> Any:
        with SingleNodeExecutor(max_workers=2) as exe:
            runner = Pipeline([pipefunc_pipeline.f, pipefunc_pipeline.g]).map_async(
                pipefunc_pipeline.INPUTS, executor=exe, show_progress=False
            )
            return await runner.task

    assert asyncio.run(run())["z"].output.tolist() == [2, 5, 10]


def test_an_error_of_a_step_arrives() -> None:
    @pipefunc(output_name="y", mapspec="x[i] -> y[i]")
    def invert(x: float) -> float:
        return 1.0 / x

    with SingleNodeExecutor(max_workers=2) as exe, pytest.raises(ZeroDivisionError):
        Pipeline([invert]).map({"x": [1.0, 0.0]}, executor=exe, show_progress=False)
