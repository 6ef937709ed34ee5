"""pipefunc: a pipeline of two functions, mapped over a list, with one executor or with one per output."""

import sys

from pipefunc import Pipeline, pipefunc

from executorlib import SingleNodeExecutor

INPUTS = {"x": [1, 2, 3]}


@pipefunc(output_name="y", mapspec="x[i] -> y[i]")
def f(x: int) -> int:
    return x**2


@pipefunc(output_name="z", mapspec="y[i] -> z[i]")
def g(y: int) -> int:
    return y + 1


def with_one_executor() -> list[int]:
    with SingleNodeExecutor() as exe:
        results = Pipeline([f, g]).map(INPUTS, executor=exe, show_progress=False)
    z: list[int] = results["z"].output.tolist()
    return z


def with_an_executor_for_each_output() -> list[int]:
    with SingleNodeExecutor(max_workers=2) as first, SingleNodeExecutor(max_workers=4) as second:
        results = Pipeline([f, g]).map(INPUTS, executor={"y": first, "z": second}, show_progress=False)
    z: list[int] = results["z"].output.tolist()
    return z


def main() -> int:
    one, several = with_one_executor(), with_an_executor_for_each_output()
    print("one executor:             z =", one)
    print("one executor per output:  z =", several)
    return 0 if one == several == [2, 5, 10] else 1


if __name__ == "__main__":
    sys.exit(main())
