"""Pickling: what leaves this process, and what comes back.

Most arguments and results are numbers, strings and arrays, for which the C pickler of the standard library is ten times
as fast as cloudpickle. It is tried first. Its one trap is an object of ``__main__``: it would be pickled by reference,
and a worker has another ``__main__``. Such a pickle names the module, so it is recognised by that and made again by
value.

Buffers of 64 kB and more (NumPy arrays and whatever else speaks pickle protocol 5) are left out of the pickle and
travel as they are.
"""

from __future__ import annotations

import functools
import io
import sys
from collections import namedtuple

from executorlib.standalone import light
from executorlib.standalone.errors import RemoteError, RemoteTraceback, safe_repr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from concurrent.futures import Future
    from typing import Any, Protocol

    class Numbered(Protocol):
        """Anything that has items with numbers: a list, a dictionary."""

        def __getitem__(self, number: int, /) -> Any: ...


OUT_OF_BAND_BYTES = 65536
"""Smaller buffers are copied into the pickle: that is faster, and a snapshot of what the caller gave."""

_PROTOCOL = 5
# The script is ``__main__``, and ``__mp_main__`` in a process that multiprocessing has spawned: the end of both names.
_MAIN = b"_main__"
_SPAWNED_MAIN = "__mp_main__"


class Payload(namedtuple("Payload", ("data", "buffers"), defaults=((),))):  # typing would be most of this import
    """A pickle and the buffers that were left out of it."""

    __slots__ = ()

    data: bytes
    buffers: Sequence[Any]

    @property
    def nbytes(self) -> int:
        return len(self.data) + sum(memoryview(buffer).nbytes for buffer in self.buffers)


PLAIN_TYPES = frozenset({int, float, complex, str, bytes, bool, type(None)})
"""Types whose pickles need no module, and hold nothing that could be a future or lie in a buffer of its own."""


def dumps(obj: Any) -> Payload:
    """Pickle an object so that another process can load it, whatever module it comes from.

    Raises:
        Exception: whatever the object's own pickling raises; ``pickle.PicklingError`` or ``TypeError`` as a rule.
    """
    buffers: list[Any] = []
    if not by_value_modules():
        try:
            data = light.dumps(obj, _PROTOCOL, buffer_callback=_collector(buffers))
        except Exception:  # what the C pickler cannot do, cloudpickle may
            pass
        else:
            if _MAIN not in data:
                return Payload(data, buffers or ())
    buffers = []
    return Payload(_cloudpickle().dumps(obj, protocol=_PROTOCOL, buffer_callback=_collector(buffers)), buffers)


def dumps_plain(obj: Any) -> Payload:
    """As `dumps`, for tuples and dictionaries of `PLAIN_TYPES`: thousands a second come this way."""
    return Payload(light.dumps(obj, _PROTOCOL), ())


def loads(payload: Payload) -> Any:
    """The object of a payload; arrays lie in the payload's buffers and are writable where those are."""
    return light.loads(payload.data, buffers=payload.buffers)


def dumps_with_inputs(obj: Any) -> tuple[Payload, list[Future[Any]]]:
    """Pickle an object in which futures stand for values that are not known yet.

    Each future becomes a reference by number, wherever it stands in the object.

    Returns:
        the payload for `loads_with_inputs`, and the futures in the order of their numbers
    """
    from concurrent.futures import Future  # here: a worker starts sooner without it

    inputs: list[Future[Any]] = []
    numbers: dict[int, int] = {}

    def number(candidate: Any) -> int | None:
        if not isinstance(candidate, Future):
            return None
        if id(candidate) not in numbers:
            numbers[id(candidate)] = len(inputs)
            inputs.append(candidate)
        return numbers[id(candidate)]

    if not by_value_modules():
        buffers: list[Any] = []
        try:
            data = _dump_numbered(_InputPickler, obj, buffers, number)
        except Exception:  # as in `dumps`
            pass
        else:
            if _MAIN not in data:
                return Payload(data, buffers), inputs
    inputs.clear()
    numbers.clear()
    buffers = []
    return Payload(_dump_numbered(_input_cloudpickler(), obj, buffers, number), buffers), inputs


def dumps_with_parts(obj: Any, number: Callable[[Any], int | None]) -> Payload | None:
    """Pickle an object with references by number in the places of some of its parts.

    Args:
        obj: the object
        number: the number of a part that is not to be pickled, None for any other object

    Returns:
        the payload for `loads_with_inputs`; None where only cloudpickle can pickle the rest of the object
    """
    if by_value_modules():
        return None
    buffers: list[Any] = []
    try:
        data = _dump_numbered(_InputPickler, obj, buffers, number)
    except Exception:
        return None
    return None if _MAIN in data else Payload(data, buffers)


def loads_with_inputs(payload: Payload, values: Numbered) -> Any:
    """The object that `dumps_with_inputs` or `dumps_with_parts` pickled, with what the numbers stand for."""
    unpickler = _InputUnpickler(io.BytesIO(payload.data), buffers=payload.buffers)
    unpickler.values = values
    return unpickler.load()


def dump_error(error: BaseException) -> bytes:
    """Pickle an exception and its traceback as text, or a `RemoteError` where the exception itself cannot travel."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("_HIDE_FROM_TRACEBACK"):
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace or error.__traceback__))
    try:
        data = dumps(error).data
        # An exception whose constructor wants more than its message pickles well and fails to load.
        if type(light.loads(data)) is not type(error):
            raise TypeError("the exception changes its type in a pickle")
    except BaseException:  # a hostile __reduce__ may raise anything
        try:
            message = str(error)
        except Exception:
            message = "<no message>"
        data = light.dumps(RemoteError(f"{type(error).__qualname__}: {message}"), _PROTOCOL)
    return light.dumps((data, text), _PROTOCOL)


def load_error(data: bytes) -> BaseException:
    """The exception of `dump_error`, with the remote traceback as its ``__cause__``."""
    pickled, text = light.loads(data)
    try:
        error = light.loads(pickled)
    except BaseException as reason:  # it runs the user's code
        error = RemoteError(f"an exception that cannot be unpickled here: {safe_repr(reason)}")
    known = error if isinstance(error, BaseException) else RemoteError(safe_repr(error))
    known.__cause__ = RemoteTraceback(text)
    return known


def cloudpickle_register(ind: int = 2) -> None:
    """Pickle the objects of a caller's module by value, so that workers need not be able to import it.

    Args:
        ind: how many frames up the stack the module is found: 1 is the function that calls this one, 2 its caller
    """
    import inspect

    import cloudpickle

    try:
        frame = inspect.stack()[ind]
    except IndexError:  # called from the top of a script
        return
    module = inspect.getmodule(frame.frame)
    if module is not None and module.__name__ != "__main__":
        cloudpickle.register_pickle_by_value(module)


def _collector(buffers: list[Any]) -> Callable[[light.PickleBuffer], bool]:
    def collect(buffer: light.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_BYTES:
            return True  # in band
        buffers.append(view)
        return False

    return collect


def by_value_modules() -> Collection[str]:
    """The modules of which the user has told cloudpickle that workers cannot import them."""
    module = sys.modules.get("cloudpickle.cloudpickle")
    return module.list_registry_pickle_by_value() - {_SPAWNED_MAIN} if module is not None else ()


def _cloudpickle() -> Any:
    import cloudpickle

    main = sys.modules.get(_SPAWNED_MAIN)
    if main is not None and main.__name__ == _SPAWNED_MAIN:  # it knows the other name of the script only
        cloudpickle.register_pickle_by_value(main)
    return cloudpickle


def _dump_numbered(
    pickler_class: Any,
    obj: Any,
    buffers: list[Any],
    number: Callable[[Any], int | None],
) -> bytes:
    stream = io.BytesIO()
    pickler = pickler_class(stream, protocol=_PROTOCOL, buffer_callback=_collector(buffers))
    pickler.number = number
    pickler.dump(obj)
    return stream.getvalue()


class _InputPickler(light.Pickler):
    number: Callable[[Any], int | None]

    def persistent_id(self, obj: Any) -> int | None:
        return self.number(obj)


class _InputUnpickler(light.Unpickler):
    values: Numbered

    def persistent_load(self, pid: int) -> Any:
        return self.values[pid]


@functools.cache
def _input_cloudpickler() -> type[light.Pickler]:
    class InputCloudPickler(_cloudpickle().Pickler):  # type: ignore[misc]
        number: Callable[[Any], int | None]

        def persistent_id(self, obj: Any) -> int | None:
            return self.number(obj)

    return InputCloudPickler
