"""emcee: the walkers of a sampler, evaluated by an executor instead of a multiprocessing.Pool.

The posterior is a normal distribution in five dimensions, so that its mean and variance are known.
"""

import sys

import emcee
import numpy as np

from executorlib import SingleNodeExecutor

WALKERS, STEPS = 32, 100
MEAN = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
VARIANCE = np.array([0.25, 0.5, 1.0, 2.0, 4.0])


def log_prob(theta: np.ndarray) -> float:
    return -0.5 * float(np.sum((theta - MEAN) ** 2 / VARIANCE))


def sample(pool: SingleNodeExecutor | None) -> np.ndarray:
    """The positions of all walkers after each step: an array of steps x walkers x dimensions."""
    initial = np.random.default_rng(seed=4).normal(MEAN, np.sqrt(VARIANCE), (WALKERS, len(MEAN)))
    sampler = emcee.EnsembleSampler(WALKERS, len(MEAN), log_prob, pool=pool)
    sampler.random_state = np.random.RandomState(5).get_state()
    sampler.run_mcmc(initial, STEPS)
    chain: np.ndarray = sampler.get_chain()
    return chain


def main() -> int:
    # The walkers are evaluated in every step: workers that are kept save a new process per call.
    with SingleNodeExecutor(block_allocation=True) as exe:
        chain = sample(exe)

    samples = chain.reshape(-1, len(MEAN))
    mean, variance = samples.mean(axis=0), samples.var(axis=0)
    print("mean    ", mean.round(2), "of", MEAN)
    print("variance", variance.round(2), "of", VARIANCE)
    # So short a chain has some 60 independent samples.
    right = np.all(abs(mean - MEAN) < 0.4 * np.sqrt(VARIANCE)) and np.all(abs(variance / VARIANCE - 1.0) < 0.6)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
