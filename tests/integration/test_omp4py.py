"""omp4py: a function sees as many OpenMP threads as ``threads_per_core`` says."""

from __future__ import annotations

import os

import omp4py_pi
import pytest

from executorlib import SingleNodeExecutor
from executorlib.standalone.hardware import THREAD_VARIABLES

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_of_a_call(threads: int) -> None:
    with SingleNodeExecutor() as exe:
        future = exe.submit(omp4py_pi.calc_pi, 100_000, resource_dict={"threads_per_core": threads})
        pi, seen = future.result()
    assert seen == threads
    assert pi == pytest.approx(3.14159, abs=0.04)


@pytest.mark.parametrize("block_allocation", [False, True])
def test_threads_of_an_executor(block_allocation: bool) -> None:
    with SingleNodeExecutor(resource_dict={"threads_per_core": 2}, block_allocation=block_allocation) as exe:
        assert exe.submit(omp4py_pi.calc_pi, 1000).result()[1] == 2


def test_one_thread_unless_something_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with SingleNodeExecutor(max_workers=1) as exe:
        assert exe.submit(omp4py_pi.calc_pi, 1000).result()[1] == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert exe.submit(omp4py_pi.calc_pi, 1000).result()[1] == 3
        assert exe.submit(os.getenv, "MKL_NUM_THREADS").result() == "1"
