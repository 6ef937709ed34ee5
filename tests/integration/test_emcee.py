"""emcee: ``EnsembleSampler(..., pool=exe)`` needs a `map` that takes its time in order."""

from __future__ import annotations

import emcee
import emcee_posterior
import numpy as np
import pytest

from executorlib import SingleNodeExecutor

pytestmark = pytest.mark.integration


def test_the_posterior_is_right_and_equals_that_of_a_serial_run() -> None:
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        chain = emcee_posterior.sample(exe)
    assert chain.shape == (100, 32, 5)
    samples = chain.reshape(-1, 5)
    width = np.sqrt(emcee_posterior.VARIANCE)
    assert np.all(abs(samples.mean(axis=0) - emcee_posterior.MEAN) < 0.4 * width)
    assert np.all(abs(samples.var(axis=0) / emcee_posterior.VARIANCE - 1.0) < 0.6)
    assert np.array_equal(chain, emcee_posterior.sample(None))


@pytest.mark.timeout(120)  # eight imports of emcee
def test_a_fresh_process_for_each_likelihood() -> None:
    x = np.linspace(0.0, 1.0, 20)
    y = 3.0 * x + 1.0
    initial = np.random.default_rng(1).normal((3.0, 1.0), 0.1, (4, 2))

    # A function of this module would have every process import pytest.
    def log_prob(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        return -0.5 * float(np.sum((y - theta[0] * x - theta[1]) ** 2))

    def run(pool: SingleNodeExecutor | None) -> np.ndarray:
        sampler = emcee.EnsembleSampler(4, 2, log_prob, args=(x, y), pool=pool)
        sampler.random_state = np.random.RandomState(2).get_state()
        sampler.run_mcmc(initial, 1)
        chain: np.ndarray = sampler.get_chain()
        return chain

    with SingleNodeExecutor(max_workers=2) as exe:
        assert np.array_equal(run(exe), run(None))


def test_an_error_of_the_likelihood_arrives() -> None:
    def log_prob(theta: np.ndarray) -> float:
        raise ValueError("outside the model")

    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        sampler = emcee.EnsembleSampler(8, 2, log_prob, pool=exe)
        with pytest.raises(ValueError, match="outside the model"):
            sampler.run_mcmc(np.random.default_rng(1).normal(size=(8, 2)), 1)
        assert exe.submit(sum, [1, 2]).result() == 3
