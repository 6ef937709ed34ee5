"""What a run would do, written down instead of done: recorded, drawn, exported.

    submit(fn, ...) ──► WorkflowRecorder ──► WorkflowGraph ──┬──► draw()             a picture
                                                             └──► export_workflow()  a JSON file

Nothing in here runs a task, starts a thread or imports a library before a picture is asked for.
"""

from executorlib.standalone.workflow.draw import check_drawable, draw, to_dot
from executorlib.standalone.workflow.export import WorkflowExportError, export_workflow
from executorlib.standalone.workflow.record import WorkflowGraph, WorkflowRecorder

__all__ = [
    "WorkflowExportError",
    "WorkflowGraph",
    "WorkflowRecorder",
    "check_drawable",
    "draw",
    "export_workflow",
    "to_dot",
]
