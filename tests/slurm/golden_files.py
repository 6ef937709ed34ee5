"""Comparing what is generated with files of this folder.

`EXECUTORLIB_WRITE_GOLDEN=1 pytest tests/slurm` writes them anew.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from executorlib.standalone.command import get_command_path

GOLDEN = Path(__file__).parent / "golden"


def check_golden(name: str, text: str, **places: str) -> None:
    """Compare a text with a golden file; what differs from machine to machine is replaced by words in capitals.

    Args:
        name: of the file
        text: what was generated
        places: words and the texts that they stand for
    """
    backend = os.path.dirname(get_command_path("cache_serial.py"))
    for word, place in {**places, "BACKEND": backend, "PYTHON": sys.executable}.items():
        text = text.replace(place, word.upper())
    path = GOLDEN / name
    if os.environ.get("EXECUTORLIB_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path} says something else; see golden_files.py"
