"""emcee with the pool of each library."""

from __future__ import annotations

import time
from typing import Any

from pools import open_pool
from work import empty_likelihood, likelihood_with_data

_WALKERS, _DIMENSIONS = 32, 4


def _sampler(pool: Any, megabytes: int) -> Any:
    import emcee
    import numpy

    if megabytes:
        data = numpy.ones(megabytes * 125_000)
        return emcee.EnsembleSampler(_WALKERS, _DIMENSIONS, likelihood_with_data, pool=pool, args=(data,))
    return emcee.EnsembleSampler(_WALKERS, _DIMENSIONS, empty_likelihood, pool=pool)


def _chain(sampler: Any, steps: int) -> Any:
    import numpy

    numpy.random.seed(5)
    sampler.reset()
    sampler.run_mcmc(numpy.random.rand(_WALKERS, _DIMENSIONS), steps)
    return sampler.get_chain()


def emcee(library: str, steps: int, megabytes: int = 0, workers: int = 2) -> float:
    """Steps per second. The chain has to be that of a sampler without a pool."""
    pool = open_pool(library, workers)
    pool.warm(workers)
    _chain(_sampler(pool.itself, 0), 2)  # The workers load emcee. The first sending of the data counts.
    sampler = _sampler(pool.itself, megabytes)
    start = time.perf_counter()
    chain = _chain(sampler, steps)
    rate = steps / (time.perf_counter() - start)
    pool.close()
    if not (chain == _chain(_sampler(None, megabytes), steps)).all():
        raise AssertionError("wrong chain")
    return rate


CASES: dict[str, Any] = {"emcee": emcee}
