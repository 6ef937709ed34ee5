"""One measurement: ``python one.py CASE LIBRARY ARGUMENTS``, the last in JSON. Prints its value in JSON."""

from __future__ import annotations

import json
import sys

import batch
import brokers
import cached
import cost
import sampling
import throughput

CASES = {**batch.CASES, **brokers.CASES, **cached.CASES, **cost.CASES, **sampling.CASES, **throughput.CASES}


def main(case: str, library: str, arguments: str) -> None:
    value = CASES[case](library, **json.loads(arguments))
    print(json.dumps({"value": value}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
