import multiprocessing
import time


def square(number: int) -> int:
    return number**2


if __name__ == "__main__":
    with multiprocessing.Pool() as pool:
        print(pool.apply(square, (7,)), time.monotonic())
