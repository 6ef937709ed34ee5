"""Functions on their way to a worker: pickled once, recognised when they come again.

A function is what it is at the moment of the submission: its defaults, its closure and the global variables that it
reads. Most functions cannot change without being another object: those of an importable module travel by name, and of
those that travel by value most read only constants, modules and other functions. For these a look at what they read
replaces the pickling. Everything else is pickled at every submission, and compared with what was sent before, so that
the 50 MB of data behind a likelihood go to a worker once and not with every call.
"""

from __future__ import annotations

import itertools
import opcode
import operator
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from executorlib.standalone.callables import function_name
from executorlib.standalone.plain_function import dump_plain
from executorlib.standalone.serialize import Payload, by_value_modules, dumps, dumps_with_parts

_KEPT = 64
_KEPT_BYTES = 1 << 28
# As many as are kept of such size are nothing beside that.
_SMALL_BYTES = 1 << 16
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
# What a function must not do if a second call in the same worker is to find what the first one found.
_WRITES = frozenset(opcode.opmap[name] for name in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"))
# Names by which a function writes without such an operation: builtins, and attributes.
_WRITERS = frozenset({"setattr", "delattr", "globals", "vars", "exec", "eval"})
_WRITABLE = frozenset({"__dict__", "__globals__", "__setattr__", "__delattr__"})
_STORE_FREE = opcode.opmap["STORE_DEREF"]
_MISSING = object()
_numbers = itertools.count(1)


class FunctionRef:
    """A pickled function.

    Attributes:
        number: unique in this process; a worker knows the function by it
        name: for messages
        reusable: whether one unpickled copy serves many calls; if not, each call gets a fresh one
        parts: functions that it refers to by their numbers: they are reusable though it may not be
        seconds: measured run time of a call, smoothed; None before the first result (the dispatcher's)
    """

    __slots__ = ("name", "number", "parts", "payload", "reusable", "seconds")

    def __init__(self, payload: Payload, name: str, reusable: bool, parts: tuple[FunctionRef, ...] = ()) -> None:
        self.number = next(_numbers)
        self.parts = parts
        self.payload = payload
        self.name = name
        self.reusable = reusable
        self.seconds: float | None = None


NO_FUNCTION = FunctionRef(Payload(b""), "", False)
"""Stands for a function that cannot be sent."""


class FunctionTable:
    """The functions that an executor has seen lately. Used by the threads that submit."""

    def __init__(self) -> None:
        self._by_identity: OrderedDict[int, tuple[Any, FunctionRef, _Reads]] = OrderedDict()
        self._by_pickle: OrderedDict[bytes, list[FunctionRef]] = OrderedDict()

    def known(self, fn: Callable[..., Any]) -> FunctionRef | None:
        """The pickled form of a function that was seen before and is the same now."""
        entry = self._by_identity.get(id(fn))
        if entry is None or entry[0] is not fn or not entry[2].unchanged():
            return None
        return entry[1]

    def add(self, fn: Callable[..., Any]) -> FunctionRef:
        """The pickled form of a function.

        Raises:
            Exception: whatever its pickling raises
        """
        reads = _Reads.of(fn)
        if reads is None:
            return self._add_in_parts(fn)
        ref = self._ref(reads.dump(fn), fn, reusable=True)
        self._by_identity[id(fn)] = (fn, ref, reads)
        _trim(self._by_identity)
        return ref

    def _add_in_parts(self, fn: Callable[..., Any]) -> FunctionRef:
        """Pickle an object that may change with each call, such as a partial or a callable object.

        The functions in it that cannot change are sent once, and are not unpickled for every call.
        """
        parts: dict[int, FunctionRef] = {}

        def number(obj: Any) -> int | None:
            if type(obj) is not types.FunctionType or obj is fn:
                return None
            part = self.known(obj) or (self.add(obj) if _Reads.of(obj) is not None else None)
            if part is None:
                return None
            parts[part.number] = part
            return part.number

        payload = dumps_with_parts(fn, number)
        if payload is None:
            return self._ref(dumps(fn), fn, reusable=False)
        return self._ref(payload, fn, reusable=False, parts=tuple(parts.values()))

    def _ref(self, payload: Payload, fn: Any, *, reusable: bool, parts: tuple[FunctionRef, ...] = ()) -> FunctionRef:
        return self._same(payload, reusable, parts) or self._new(payload, fn, reusable, parts)

    def _same(self, payload: Payload, reusable: bool, parts: tuple[FunctionRef, ...]) -> FunctionRef | None:
        for ref in self._by_pickle.get(payload.data, ()):
            if ref.reusable is reusable and ref.parts == parts and _same_buffers(ref.payload.buffers, payload.buffers):
                return ref
        return None

    def _new(self, payload: Payload, fn: Any, reusable: bool, parts: tuple[FunctionRef, ...]) -> FunctionRef:
        # The buffers are copied: the caller may change the arrays before a second worker gets them.
        snapshot = Payload(payload.data, [bytes(buffer) for buffer in payload.buffers])
        ref = FunctionRef(snapshot, function_name(fn), reusable, parts)
        if payload.buffers:  # a later version of the same data replaces the earlier one
            self._by_pickle[payload.data] = [ref]
        else:
            self._by_pickle.setdefault(payload.data, []).append(ref)
        _trim(self._by_pickle)
        if snapshot.nbytes <= _SMALL_BYTES:  # as calls with a cache are, each a function of its own
            return ref
        # A function that carries data is another one with each change of them.
        while len(self._by_pickle) > 1 and sum(map(_nbytes, list(self._by_pickle.values()))) > _KEPT_BYTES:
            self._by_pickle.popitem(last=False)
        return ref


def _same_buffers(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(map(same_bytes, first, second))


def same_bytes(first: Any, second: Any) -> bool:
    """Whether two contiguous buffers hold the same bytes."""
    a, b = memoryview(first).cast("B"), memoryview(second).cast("B")
    if len(a) != len(b):
        return False
    # Views are compared item by item: eight bytes an item is eight times as fast.
    even = len(a) // 8 * 8
    return a[:even].cast("Q") == b[:even].cast("Q") and a[even:] == b[even:]


class _Reads:
    """All that the pickle of a function depends on, where that is only constants, modules and such functions."""

    __slots__ = ("_functions", "_names", "_unloaded")

    def __init__(
        self,
        functions: list[tuple[types.FunctionType, tuple[Any, ...]]],
        names: list[tuple[dict[str, Any], str, Any]],
    ) -> None:
        self._functions = functions
        self._names = names
        self._unloaded: set[str] = set()  # submodules that it would read, if the program had imported them

    def unchanged(self) -> bool:
        if self._unloaded and not sys.modules.keys().isdisjoint(self._unloaded):
            return False
        for namespace, name, value in self._names:
            if namespace.get(name, _MISSING) is not value:
                return False
        for fn, before in self._functions:
            if fn.__code__ is not before[0] or fn.__defaults__ is not before[1] or fn.__dict__:
                return False
            if (fn.__closure__ or fn.__kwdefaults__ or len(before) > 2) and not _same(_definition(fn), before):
                return False
        return True

    def dump(self, fn: Any) -> Payload:
        """The pickle of the function."""
        if isinstance(fn, types.FunctionType) and len(self._functions) == 1 and self._functions[0][0] is fn:
            read = {name: value for _, name, value in self._names if value is not _MISSING}
            data = dump_plain(fn, _all_code(fn.__code__), read)
            if data is not None:
                return Payload(data)
        return dumps(fn)

    @classmethod
    def of(cls, fn: Any) -> _Reads | None:
        """What a function reads; None where it may change under our hands, or change something itself."""
        reads = cls([], [])
        return reads if reads._add(fn, set()) else None

    def _add(self, obj: Any, seen: set[int]) -> bool:
        if type(obj) in _ATOMS or id(obj) in seen:
            return True
        seen.add(id(obj))
        if type(obj) is tuple:
            return all(self._add(item, seen) for item in obj)
        if isinstance(obj, types.ModuleType):
            return sys.modules.get(obj.__name__) is obj
        if isinstance(obj, types.BuiltinFunctionType):
            return isinstance(obj.__self__, (types.ModuleType, type(None)))
        if _travels_by_name(obj):
            return True
        return isinstance(obj, types.FunctionType) and self._add_function(obj, seen)

    def _add_function(self, fn: types.FunctionType, seen: set[int]) -> bool:
        if fn.__dict__ or fn.__globals__.get("__name__") is None:
            return False
        codes = list(_all_code(fn.__code__))
        operations = set().union(*(code.co_code[::2] for code in codes))
        names = {name for code in codes for name in code.co_names}
        if operations & _WRITES or (fn.__closure__ and _STORE_FREE in operations):
            return False
        if names & _WRITABLE or _uses_writers(codes, names):
            return False
        self._functions.append((fn, _definition(fn)))
        # Nothing that is gone while `seen` knows it by its id: what comes after may have the same.
        parts = [fn.__defaults__ or (), *(fn.__kwdefaults__ or {}).values()]
        for cell in fn.__closure__ or ():
            try:
                parts.append(cell.cell_contents)
            except ValueError:  # not filled yet
                return False
        for name in names:
            value = fn.__globals__.get(name, _MISSING)
            self._names.append((fn.__globals__, name, value))
            if value is not _MISSING:
                parts.append(value)
        self._unloaded.update(_unloaded_submodules(parts, names))
        return all(self._add(part, seen) for part in parts)


def _definition(fn: types.FunctionType) -> tuple[Any, ...]:
    """The parts that a program can replace: compared by identity, and kept alive so that identity means something."""
    keywords = fn.__kwdefaults__ or {}
    cells = [cell.cell_contents for cell in fn.__closure__ or ()]
    return (fn.__code__, fn.__defaults__, *keywords, *keywords.values(), *cells)


def _unloaded_submodules(values: Iterable[Any], names: set[str]) -> Iterator[str]:
    """What ``import a.b`` could still load of the modules among some values, if code that has these names reads it."""
    packages = [value.__name__ for value in values if isinstance(value, types.ModuleType)]
    while packages:
        package = packages.pop()
        if not hasattr(sys.modules.get(package), "__path__"):
            continue
        for name in names:
            submodule = f"{package}.{name}"
            if submodule in sys.modules:
                packages.append(submodule)
            else:
                yield submodule


def _same(now: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _travels_by_name(obj: Any) -> bool:
    """Whether a class or a function of a module is pickled as a reference that any worker can follow."""
    if not isinstance(obj, (type, types.FunctionType)):
        return False
    module = getattr(obj, "__module__", None)
    if module is None or module in ("__main__", "__mp_main__") or module not in sys.modules:
        return False
    if by_value_modules():
        return False
    found: Any = sys.modules[module]
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _uses_writers(codes: Iterable[types.CodeType], names: set[str]) -> bool:
    """Whether one of the builtins is read, and not just a method of that name."""
    if not names & _WRITERS:
        return False
    import dis

    return any(
        step.argval in _WRITERS and step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        for code in codes
        for step in dis.get_instructions(code)
    )


def _all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_code(constant)


def _nbytes(refs: list[FunctionRef]) -> int:
    return sum(ref.payload.nbytes for ref in refs)


def _trim(cache: OrderedDict[Any, Any]) -> None:
    while len(cache) > _KEPT:
        cache.popitem(last=False)
