"""dask: an executor as the scheduler of `compute`."""

from __future__ import annotations

import dask_array
import pytest
from dask.delayed import delayed

from executorlib import SingleNodeExecutor

pytestmark = pytest.mark.integration


def test_an_array() -> None:
    by_chunks, by_formula = dask_array.sum_of_squares()
    assert by_chunks == by_formula


@pytest.mark.parametrize("block_allocation", [False, True])
def test_delayed_calls(block_allocation: bool) -> None:
    def square(x: int) -> int:
        return x**2

    total = delayed(sum)([delayed(square)(x) for x in range(10)])
    with SingleNodeExecutor(max_workers=2, block_allocation=block_allocation) as exe:
        assert total.compute(scheduler=exe) == 285


def test_an_error_of_a_node_arrives() -> None:
    with SingleNodeExecutor(max_workers=2) as exe, pytest.raises(ZeroDivisionError):
        delayed(divmod)(1, 0).compute(scheduler=exe)
