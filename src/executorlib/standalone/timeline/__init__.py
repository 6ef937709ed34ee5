"""A run as a picture: which worker did what when, and what the cores did while they ran nothing.

Run ──┬── trace    Chrome's trace format (JSON), which Perfetto opens
      ├── picture  SVG
      └── page     the picture and tables (HTML)
Run ──► account    where the time of the cores has gone
"""

from executorlib.standalone.timeline.record import Attempt, Life, Run
from executorlib.standalone.timeline.write import check_filename, write_timeline

__all__ = ["Attempt", "Life", "Run", "check_filename", "write_timeline"]
