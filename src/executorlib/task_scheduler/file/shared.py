"""The class that stands for a future in the input file of a task, where executorlib 1.11 has it."""

from __future__ import annotations

from executorlib.standalone.future_item import FutureItem

__all__ = ["FutureItem"]
