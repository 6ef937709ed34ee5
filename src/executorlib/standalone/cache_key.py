"""The key under which the cache keeps the result of a call: the same for the same call, in every Python process.

It is executorlib 1.11's wherever that is possible, so that caches are shared: the function's name and the md5 of
cloudpickle's bytes for ``{"fn": ..., "args": ..., "kwargs": ...}``. Those bytes change from process to process where
they hold

- a set: its order follows the hash seed of the process;
- a class of ``__main__``: cloudpickle numbers it by chance;
- code from a notebook cell or an interactive prompt: its file name counts processes or cells.

There a canonical form of the same call is hashed instead: sets sorted, numbers and file names left out. executorlib
1.11 itself never finds such a call again. In notebooks it does, but by skipping whatever stands between
``/ipykernel_`` and the last slash of a line of the pickle, arguments too: different calls may share a key there.

Code of a script holds the script's path, which is the same each time unless the script is moved. Such a call has
executorlib 1.11's key, and the canonical one as an alias.
"""

from __future__ import annotations

import io
import numbers
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b, md5
from typing import Any, TypeVar

_PROTOCOL = 5
# The numbers in them are a process id or a count of cells.
_CELL_FILE_NAME = re.compile(r"[/\\](?:ipykernel|xpython|marimo)_\d+[/\\]|^<(?:ipython|python)-input-\d+")
_SKIPPED_BY_PUBLISHED = re.compile(rb"/ipykernel_.*/")
_SET_OPCODES = (b"\x8f", b"\x91")  # EMPTY_SET, FROZENSET
_CANONICAL_FORM = b"executorlib-1"  # another hash for another canonical form


@dataclass(frozen=True, slots=True)
class CallKey:
    """The name of a call in the cache.

    Attributes:
        key: the name of its files; different for different calls.
        movable: the key holds the path of the running script; `alias_key` gives another name, without the path.
    """

    key: str
    movable: bool = False


def default_key(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The key of a call for which the user gave none, see `call_key`."""
    return call_key(fn, args, kwargs).key


def call_key(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallKey:
    """The key of a call: the function's name and 32 hexadecimal digits.

    Args:
        fn: the function.
        args: positional arguments. executorlib 1.11 takes a tuple in the executors with live workers and a list in
            those that work through files, and has different keys for the two.
        kwargs: keyword arguments, in their order.

    Raises:
        Exception: what pickling the call raises.
    """
    call = {"fn": fn, "args": args, "kwargs": kwargs}
    pickled, varies = _pickle(call, _observer())
    varies = varies or _SKIPPED_BY_PUBLISHED.search(pickled) is not None
    # The byte of an opcode may as well be part of a number or an array; the canonical form finds out.
    if varies or any(opcode in pickled for opcode in _SET_OPCODES):
        try:
            canonical, found_set = _pickle(call, _canonicalizer())
        except Exception:  # it nests too deep for sorting, or a set contains itself
            varies = False
        else:
            if varies or found_set:
                return CallKey(_canonical_key(fn, canonical))
    main_file = _main_file()
    movable = main_file is not None and main_file.encode("utf-8", "surrogatepass") in pickled
    return CallKey(_function_name(fn) + md5(pickled, usedforsecurity=False).hexdigest(), movable)


def alias_key(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """A name for a call that stays the same when the running script is moved or started by another path.

    It takes longer than `call_key`: it is for a call of which no result is found by its key. Two scripts with the same
    function, line for line, have one alias: what the function imports is no part of any key.

    Returns:
        A name of the form of a key; None for a call that has no canonical form.
    """
    try:
        canonical, _ = _pickle({"fn": fn, "args": args, "kwargs": kwargs}, _canonicalizer())
    except Exception:  # as in `call_key`
        return None
    return _canonical_key(fn, canonical)


def _canonical_key(fn: Callable[..., Any], canonical: bytes) -> str:
    return _function_name(fn) + blake2b(canonical, digest_size=16, person=_CANONICAL_FORM).hexdigest()


def _function_name(fn: Callable[..., Any]) -> str:
    name = getattr(fn, "__name__", None)
    return name if isinstance(name, str) else type(fn).__name__


def _pickle(obj: Any, pickler_class: Any, active: frozenset[int] = frozenset()) -> tuple[bytes, bool]:
    """The pickle of an object, and whether it holds what varies from process to process.

    Args:
        obj: what to pickle.
        pickler_class: one of the two below.
        active: identities of the sets that are being sorted, of whose elements this object is one.
    """
    stream = io.BytesIO()
    pickler = pickler_class(stream, protocol=_PROTOCOL)
    pickler.varies = False
    pickler.active = active
    pickler.dump(obj)
    return stream.getvalue(), pickler.varies


@cache
def _observer() -> Any:
    """The pickler of cloudpickle, byte for byte; it takes note of what would be different in another process."""
    import cloudpickle

    class Observer(cloudpickle.Pickler):  # type: ignore[misc]
        varies: bool
        active: frozenset[int]

        def reducer_override(self, obj: Any) -> Any:
            reduced = super().reducer_override(obj)
            if isinstance(obj, types.CodeType):
                self.varies |= _CELL_FILE_NAME.search(obj.co_filename) is not None
            elif isinstance(obj, set | frozenset):
                self.varies |= not _order_is_stable(obj)
            elif isinstance(obj, type | TypeVar):
                reduced = self.dispatch_table[TypeVar](obj) if isinstance(obj, TypeVar) else reduced
                self.varies |= _tracker(obj, reduced) is not None
            return reduced

    return Observer


@cache
def _canonicalizer() -> Any:
    """A pickler whose bytes depend on nothing but the call. They are hashed only, never loaded."""

    class Canonicalizer(_observer()):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.sets: dict[int, tuple[int, Any]] = {}

        def persistent_id(self, obj: Any) -> Any:
            # The C pickler saves plain sets without asking for a reducer, but it asks this first.
            if type(obj) not in (set, frozenset) or _order_is_stable(obj):
                return None
            self.varies = True
            if id(obj) in self.sets:  # that it is the same set matters, if the function changes it
                return "same", self.sets[id(obj)][0]
            self.sets[id(obj)] = len(self.sets), obj  # kept alive, so that its id stays its own
            return type(obj).__name__, _sorted(obj, self.active)

        def reducer_override(self, obj: Any) -> Any:
            reduced = super().reducer_override(obj)
            if isinstance(obj, types.CodeType):
                return self.dispatch_table[types.CodeType](_without_place(obj))
            if isinstance(obj, set | frozenset):
                return _sorted_reduction(obj, self.active)
            if isinstance(obj, types.FunctionType) and isinstance(reduced, tuple):
                _forget_file(reduced[1], obj)
            if isinstance(obj, type | TypeVar):
                return _without_tracker(obj, reduced)
            return reduced

    return Canonicalizer


def _tracker(obj: Any, reduced: Any) -> str | None:
    """The random number in a reduction by which cloudpickle knows a class or type variable of ``__main__`` again."""
    from cloudpickle import cloudpickle

    tracker = getattr(cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_CLASS", {}).get(obj)
    used = isinstance(reduced, tuple) and any(argument is tracker for argument in reduced[1])
    return tracker if used and isinstance(tracker, str) else None


def _without_tracker(obj: Any, reduced: Any) -> Any:
    tracker = _tracker(obj, reduced)
    if tracker is None:
        return reduced
    if len(reduced) > 2 and isinstance(reduced[2], tuple):
        _sort_class_state(reduced[2])
    return (reduced[0], tuple("" if argument is tracker else argument for argument in reduced[1]), *reduced[2:])


def _sort_class_state(state: tuple[Any, ...]) -> None:
    """Sort what comes from sets: the virtual subclasses of an ABC and, in Python 3.13, the attributes of self."""
    for part in state:
        if isinstance(part, dict) and isinstance(part.get("_abc_impl"), list):
            living = [cls for cls in part["_abc_impl"] if cls is not None]
            part["_abc_impl"] = sorted(living, key=lambda cls: (cls.__module__, cls.__qualname__))
        if isinstance(part, dict) and isinstance(part.get("__static_attributes__"), tuple):
            part["__static_attributes__"] = tuple(sorted(part["__static_attributes__"]))


def _order_is_stable(elements: Iterable[Any]) -> bool:
    """Whether a set is iterated in the same order in every process."""
    known = list(elements)
    return len(known) < 2 or all(map(_hash_is_stable, known))


def _hash_is_stable(element: Any) -> bool:
    if type(element) in (tuple, frozenset):
        return all(map(_hash_is_stable, element))
    if element is None:
        return sys.version_info >= (3, 12)  # before, it was None's address
    # Equal numbers have equal hashes, whatever their types: a matter of their value alone. A NaN equals nothing.
    return isinstance(element, numbers.Number) and bool(element == element)


def _sorted(elements: Iterable[Any], active: frozenset[int]) -> list[Any]:
    known = list(elements)
    if all(type(element) is str for element in known):
        return sorted(known)
    if id(elements) in active:
        raise ValueError("a set that contains itself")
    active |= {id(elements)}
    return sorted(known, key=lambda element: _pickle(element, _canonicalizer(), active)[0])


def _sorted_reduction(obj: Any, active: frozenset[int]) -> Any:
    reduced = obj.__reduce_ex__(_PROTOCOL)
    if isinstance(reduced, tuple) and len(reduced[1]) == 1 and isinstance(reduced[1][0], list):
        return (reduced[0], (_sorted(reduced[1][0], active),), *reduced[2:])
    return reduced


def _without_place(code: types.CodeType) -> types.CodeType:
    if code.co_filename == _main_file() or _CELL_FILE_NAME.search(code.co_filename):
        return code.replace(co_filename="")
    return code


def _forget_file(arguments: Any, function: types.FunctionType) -> None:
    """Leave the script's path out of the globals that cloudpickle gives to every function of the script."""
    own = [argument for argument in arguments if isinstance(argument, dict) and argument is not function.__globals__]
    for base_globals in own:
        if "__file__" in base_globals and base_globals["__file__"] == _main_file():
            base_globals["__file__"] = ""


def _main_file() -> str | None:
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return path if isinstance(path, str) else None
