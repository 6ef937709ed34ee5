"""A scheduler that runs nothing: it notes the calls, and at the end draws their graph or writes it to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from executorlib.standalone.workflow import WorkflowRecorder, check_drawable, draw, export_workflow
from executorlib.task_scheduler.base import TaskSchedulerBase


class RecordedFuture(Future[Any]):
    """The future of a call that is not run: done, with the result None."""

    is_recorded = True

    def __init__(self) -> None:
        super().__init__()
        self.set_result(None)


class RecordingScheduler(TaskSchedulerBase):
    """Notes calls for a picture or a Python Workflow Definition.

    Args:
        export_filename: where the workflow is written (JSON); then nothing is drawn
        plot_filename: where the picture goes; None shows it in a notebook

    Raises:
        ImportError: there is nothing to draw with
        ValueError: the file name has an ending that stands for no format
    """

    def __init__(self, export_filename: str | None = None, plot_filename: str | None = None) -> None:
        if export_filename is None:
            check_drawable(plot_filename)
        self._export_filename = export_filename
        self._plot_filename = plot_filename
        self._recorder = WorkflowRecorder()
        self._closed = False

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Future[Any]:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = RecordedFuture()
        self._recorder.add(fn, args, kwargs, future, dict(resource_dict or {}))
        return future

    def batched(self, iterable: Iterable[Future[Any]], n: int) -> list[Future[Any]]:
        if n < 1:
            raise ValueError(f"a batch has at least 1 future, not {n}")
        futures = list(iterable)
        groups: list[Future[Any]] = []
        for start in range(0, len(futures), n):
            groups.append(RecordedFuture())
            self._recorder.add_batch(futures[start : start + n], groups[-1])
        return groups

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._closed:
            return
        self._closed = True
        if self._export_filename is not None:
            export_workflow(self._recorder.graph(), self._export_filename)
        else:
            draw(self._recorder.graph(), self._plot_filename)

    def terminate_workers(self) -> None:
        self._closed = True

    @property
    def max_workers(self) -> int:
        return 1

    @max_workers.setter
    def max_workers(self, max_workers: int) -> None:
        raise ValueError("an executor that only draws its graph has no workers")

    def __len__(self) -> int:
        return 0
