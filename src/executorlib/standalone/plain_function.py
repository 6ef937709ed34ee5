"""Functions that need nothing but their code: pickled without cloudpickle.

Most functions that travel by value read a few modules and constants. They are made here of their compiled code, so that
neither the program nor a worker has to import cloudpickle for them: its import takes as long as all the rest that lies
between the start of a worker and its first result. Whatever is less simple is cloudpickle's.
"""

from __future__ import annotations

import builtins
import marshal
import sys
import types

from executorlib.standalone.light import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes})
# What a function sees of its module without naming it: relative imports need the first two.
_MODULE_NAMES = ("__name__", "__package__", "__file__")


def dump_plain(fn: types.FunctionType, codes: Iterable[types.CodeType], read: Mapping[str, Any]) -> bytes | None:
    """The pickle of a function.

    Args:
        fn: the function
        codes: its code and that of the functions inside of it
        read: the global variables that these read, as far as there are any

    Returns:
        None for a function that is not as simple as that
    """
    if fn.__closure__ or fn.__dict__ or getattr(fn, "__type_params__", None):
        return None
    try:
        annotations = fn.__annotations__
        code = marshal.dumps(fn.__code__)
    except Exception:  # annotations may be evaluated only now (Python 3.14); code may hold constants of any kind
        return None
    given = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
    if not all(type(value) in _SIMPLE for value in given):
        return None
    if not all(type(value) in _SIMPLE or _is_builtin_type(value) for value in annotations.values()):
        return None
    values: dict[str, Any] = {}
    modules: dict[str, str] = {}
    itself: list[str] = []
    for name, value in read.items():
        if value is fn:
            itself.append(name)
        elif isinstance(value, types.ModuleType):
            modules[name] = value.__name__
        elif type(value) in _SIMPLE:
            values[name] = value
        else:
            return None
    for name in _MODULE_NAMES:
        if type(fn.__globals__.get(name)) in _SIMPLE:
            values.setdefault(name, fn.__globals__.get(name))
    names = {name for code in codes for name in code.co_names}
    state = (
        sys.implementation.cache_tag,
        code,
        (fn.__name__, fn.__qualname__, fn.__module__, fn.__doc__),
        (fn.__defaults__, fn.__kwdefaults__, annotations),
        values,
        modules,
        _submodules(modules.values(), names),
        itself,
    )
    return dumps(_Made(state), 5)


class _Made:
    """Becomes the function when its pickle is loaded."""

    def __init__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def __reduce__(self) -> Any:
        return make_plain, self._state


def make_plain(
    tag: str,
    code: bytes,
    names: tuple[str, str, str | None, str | None],
    given: tuple[Any, Any, Any],
    values: dict[str, Any],
    modules: dict[str, str],
    submodules: list[str],
    itself: list[str],
) -> types.FunctionType:
    """The function that `dump_plain` has pickled.

    Raises:
        ImportError: this is another Python, or lacks a module
    """
    if tag != sys.implementation.cache_tag:
        raise ImportError(
            f"the function {names[1]} was compiled by {tag}, and this worker runs {sys.implementation.cache_tag}: the "
            "program and its workers need the same version of Python"
        )
    namespace: dict[str, Any] = {"__builtins__": builtins, **values}
    for module in (*modules.values(), *submodules):
        __import__(module)
    for name, module in modules.items():
        namespace[name] = sys.modules[module]
    fn = types.FunctionType(marshal.loads(code), namespace, names[0], given[0])
    _, fn.__qualname__, module_name, fn.__doc__ = names
    fn.__module__ = module_name  # type: ignore[assignment]  # None is possible, and kept
    fn.__kwdefaults__, fn.__annotations__ = given[1:]
    for name in itself:
        namespace[name] = fn
    return fn


def _is_builtin_type(value: Any) -> bool:
    return isinstance(value, type) and getattr(builtins, value.__name__, None) is value


def _submodules(modules: Iterable[str], names: set[str]) -> list[str]:
    """Loaded submodules that the code may reach through these modules: ``import a.b`` makes ``a`` a global variable."""
    prefixes = tuple(f"{module}." for module in modules if hasattr(sys.modules.get(module), "__path__"))
    if not prefixes:
        return []
    found = []
    for loaded in list(sys.modules):
        for prefix in prefixes:
            if loaded.startswith(prefix) and names.issuperset(loaded[len(prefix) :].split(".")):
                found.append(loaded)
                break
    return found
