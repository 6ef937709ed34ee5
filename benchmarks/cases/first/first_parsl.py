# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"
import time

import parsl
from parsl.executors import HighThroughputExecutor


@parsl.python_app
def square(number: int) -> int:
    return number**2


if __name__ == "__main__":
    config = parsl.Config(executors=[HighThroughputExecutor(address="127.0.0.1")], initialize_logging=False)
    with parsl.load(config):
        print(square(7).result(), time.monotonic())
