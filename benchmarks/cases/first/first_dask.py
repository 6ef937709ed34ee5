# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-call"
import time

from distributed import Client


def square(number: int) -> int:
    return number**2


if __name__ == "__main__":
    with Client(dashboard_address=None) as client:
        print(client.submit(square, 7).result(), time.monotonic())
