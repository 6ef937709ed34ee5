# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-call"
import time

from loky import ProcessPoolExecutor


def square(number: int) -> int:
    return number**2


if __name__ == "__main__":
    with ProcessPoolExecutor() as executor:
        print(executor.submit(square, 7).result(), time.monotonic())
