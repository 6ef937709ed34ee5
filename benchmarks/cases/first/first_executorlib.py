import time

from executorlib import SingleNodeExecutor


def square(number: int) -> int:
    return number**2


if __name__ == "__main__":
    with SingleNodeExecutor() as executor:
        print(executor.submit(square, 7).result(), time.monotonic())
