"""The values of a cache file, each unpickled when it is first looked at."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from executorlib.standalone.cache_file import CacheFileError, read, read_all

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_values

# A value up to this size stays in memory until it is asked for; a larger one stays in the file.
_KEPT_BYTES = 16384


def unpickle(path: str, name: str, content: bytes) -> Any:
    """The object in a dataset.

    Raises:
        CacheFileError: it cannot be unpickled, because it is damaged or because a module is missing here; the reason
            is the `__cause__`.
    """
    try:
        return pickle.loads(content)
    except (Exception, SystemExit) as error:  # what a pickle calls may raise anything
        raise CacheFileError.because(path, f"{name}: {error!r}") from error


class _Pickle:
    """Stands in an entry for a value that nobody has asked for yet."""

    __slots__ = ("_content", "_name", "_path")

    def __init__(self, path: str, name: str, content: bytes | None) -> None:
        self._path = path
        self._name = name
        self._content = content

    def load(self) -> Any:
        content = self._content
        if content is None:
            content = read(self._path, [self._name])[self._name]
        return unpickle(self._path, self._name, content)


class CacheEntry(dict[str, Any]):
    """A dict of what a cache file holds, by dataset name, and the file's path as ``filename``.

    It is like any dict, but that a value is unpickled when it is first looked at: ten thousand entries can be listed
    and counted without loading ten thousand results. Looking at a value raises CacheFileError where it cannot be
    loaded, and FileNotFoundError where it is large and its file is gone.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        for name, content in read_all(path, largest=_KEPT_BYTES).items():
            super().__setitem__(name, _Pickle(path, name, content))
        super().__setitem__("filename", path)

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, _Pickle):
            value = value.load()
            super().__setitem__(key, value)
        return value

    # Everything below reads values without __getitem__ in a plain dict, some of it in C. The C code leaves the
    # short cut, and asks keys() and __getitem__, where a subclass has its own __iter__.

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            return self[key]
        return default

    def pop(self, key: str, *default: Any) -> Any:
        if key in self:
            self[key]
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        self._load()
        return super().popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else super().setdefault(key, default)

    def values(self) -> dict_values[str, Any]:
        self._load()
        return super().values()

    def items(self) -> dict_items[str, Any]:
        self._load()
        return super().items()

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    __hash__ = None

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def _load(self) -> None:
        for key in self:
            self[key]
