"""Sample a posterior on all cores: the walkers of emcee, evaluated by executorlib.

Made-up data lie on a straight line, with known measurement errors and an unknown scatter of their
own. What comes out has to agree with what went in; the exit status says whether it does.
"""

import sys
import time

import emcee
import numpy as np

from executorlib import SingleNodeExecutor

TRUTH = {"slope": 2.0, "intercept": -1.0, "ln(scatter)": np.log(0.5)}
WALKERS, STEPS, BURN_IN = 32, 1000, 300


def made_up_data(points: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed=1)
    slope, intercept, ln_scatter = TRUTH.values()
    x = np.sort(rng.uniform(0.0, 10.0, points))
    error = rng.uniform(0.1, 0.5, points)
    y = slope * x + intercept + rng.normal(0.0, np.hypot(error, np.exp(ln_scatter)))
    return x, y, error


def log_posterior(theta: np.ndarray, x: np.ndarray, y: np.ndarray, error: np.ndarray) -> float:
    """Gaussian likelihood times flat priors. https://arxiv.org/abs/1008.4686, section 8."""
    slope, intercept, ln_scatter = theta
    if not (-10.0 < slope < 10.0 and -20.0 < intercept < 20.0 and -5.0 < ln_scatter < 3.0):
        return -np.inf
    variance = error**2 + np.exp(2.0 * ln_scatter)
    residual = y - (slope * x + intercept)
    return -0.5 * float(np.sum(residual**2 / variance + np.log(variance)))


def main() -> int:
    x, y, error = made_up_data()
    slope, intercept = np.polyfit(x, y, deg=1)
    ln_scatter = np.log(np.std(y - (slope * x + intercept)))
    # From least squares: a walker that starts far off can stay there for ever.
    start = np.random.default_rng(seed=2).normal((slope, intercept, ln_scatter), 0.02, size=(WALKERS, len(TRUTH)))

    began = time.perf_counter()
    with SingleNodeExecutor(block_allocation=True) as exe:
        sampler = emcee.EnsembleSampler(WALKERS, len(TRUTH), log_posterior, args=(x, y, error), pool=exe)
        sampler.random_state = np.random.RandomState(3).get_state()
        sampler.run_mcmc(start, STEPS, progress=sys.stderr.isatty())
        cores = exe.max_workers
    seconds = time.perf_counter() - began

    samples = sampler.get_chain(discard=BURN_IN, flat=True)
    agrees = True
    print(f"{'parameter':<12} {'truth':>8} {'posterior':>18}")
    for (name, truth), mean, std in zip(TRUTH.items(), samples.mean(axis=0), samples.std(axis=0), strict=True):
        print(f"{name:<12} {truth:8.3f} {mean:9.3f} +- {std:.3f}")
        agrees = agrees and abs(mean - truth) < 4.0 * std
    calls = WALKERS * (STEPS + 1)
    print(f"{calls} likelihoods on {cores} cores in {seconds:.1f} s ({calls / seconds:.0f} /s)")
    if not agrees:
        print("the truth lies outside 4 sigma", file=sys.stderr)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
