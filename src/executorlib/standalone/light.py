"""What the start of a worker needs of `pickle`, `signal` and `socket`, without these modules.

They are thin layers of Python over modules written in C, and import re, enum and selectors for it: more than half of
what stood between the start of a fork server and a script's first result. Here are the parts written in C; where an
interpreter has no such parts, the documented modules take their places. Names mean what they mean there, except that
sockets lack ``accept``, ``makefile`` and ``with``, and signals are plain numbers.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    import socket
    from pickle import PickleBuffer, Pickler, Unpickler, dumps, loads
else:
    try:
        import _signal as signal
        import _socket as socket
        from _pickle import PickleBuffer, Pickler, Unpickler, dumps, loads
    except ImportError:
        import signal
        import socket
        from pickle import PickleBuffer, Pickler, Unpickler, dumps, loads

__all__ = ["PickleBuffer", "Pickler", "Unpickler", "dumps", "loads", "signal", "socket"]
