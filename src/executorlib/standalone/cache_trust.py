"""Whose cache files are opened. To unpickle a file is to run what its author has put there.

A file is opened if it belongs to this user or to root, and not everybody may write to it. It need not be the directory
of the same user: in a directory where others may write, they can remove files, and exchange one for another, but what
they have written themselves is not opened. The check is one of the open file, so that it cannot be exchanged between
the look and the reading.

A symbolic link would let others choose a file of this user that was never meant to be opened, such as one that came
with a mail. It is followed if it is this user's own, in a directory where nobody else may write.

Where users share their results, the environment variable EXECUTORLIB_CACHE_OWNERS names those who are trusted like
oneself: ``alice,bob,1234``, or ``*`` for everybody.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import lru_cache

VARIABLE = "EXECUTORLIB_CACHE_OWNERS"

# Some are absent on Windows, which would also turn line ends. A pipe in the place of a file must not be waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_ENTERED_BY_OTHERS = stat.S_IXGRP | stat.S_IXOTH
_CURE = "remove it, or choose another cache_directory or cache_key"


def open_trusted(path: str) -> int:
    """A descriptor for reading a file that may be unpickled.

    Raises:
        OSError: it cannot be opened, or, with errno EPERM, it should not be
    """
    try:
        descriptor = os.open(path, _FLAGS | _NOFOLLOW)
    except OSError:
        if not os.path.islink(path):
            raise
        _check_link(path)
        descriptor = os.open(path, _FLAGS)
    try:
        _check_file(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_trusted(owner: int) -> bool:
    """Whether what a user has written may be unpickled."""
    if not hasattr(os, "geteuid") or owner in (0, os.geteuid()):
        return True
    trusted = _named(os.environ.get(VARIABLE, ""))
    return trusted is None or owner in trusted


def make_private_directory(path: str) -> None:
    """Make a directory, and those above it that are missing, for this user alone. One that is there stays as it is."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    except FileNotFoundError:
        make_private_directory(os.path.dirname(path))
        make_private_directory(path)


def open_own_directory(path: str) -> int:
    """A descriptor for a directory in which only this user may write; it is made, or closed to others, if need be.

    Raises:
        OSError: it cannot be made, or, with errno EPERM, another user has made it, or a link in its place
    """
    make_private_directory(path)
    check_own(path)
    descriptor = os.open(path, os.O_RDONLY | _DIRECTORY | _NOFOLLOW)
    try:
        info = os.fstat(descriptor)
        _check_owner(info, path)
        if info.st_mode & _OTHERS and _named(os.environ.get(VARIABLE, "")) is not None:
            if info.st_uid != os.geteuid():
                raise OSError(errno.EPERM, f"others may write to it; {_CURE}", path)
            os.fchmod(descriptor, stat.S_IMODE(info.st_mode) & ~_OTHERS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_own_directory(path: str) -> None:
    """As `open_own_directory`. It stays what it is where nobody else may write to the directory that it lies in."""
    os.close(open_own_directory(path))


def open_own(path: str, flags: int) -> int:
    """A descriptor for writing a file of this user, which is made if it is missing.

    Raises:
        OSError: it cannot be opened, or, with errno EPERM, it is a link, or a file of another user
    """
    check_own(path)
    descriptor = os.open(path, flags & ~os.O_TRUNC | os.O_CREAT | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0), 0o600)
    try:
        info = os.fstat(descriptor)
        _check_owner(info, path)
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
            raise OSError(errno.EPERM, f"it is no file of its own; {_CURE}", path)
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_own(path: str) -> None:
    """Refuse what another user has put in the place of a file or a directory of ours; there may be nothing.

    Raises:
        OSError: with errno EPERM
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(info.st_mode):
        raise OSError(errno.EPERM, f"it is a symbolic link, which would lead the job elsewhere; {_CURE}", path)
    _check_owner(info, path)


def others_may_write(path: str) -> bool:
    """Whether another user can put something into a directory, or something else in its place."""
    if not hasattr(os, "geteuid"):
        return False
    return any(_is_exposed(place) for place in {os.path.abspath(path), os.path.realpath(path)})


def _is_exposed(path: str) -> bool:
    way = [path]
    while (above := os.path.dirname(way[-1])) != way[-1]:
        way.append(above)
    for place in reversed(way):
        try:
            info = os.lstat(place)
        except OSError:  # it will be made, by us
            return False
        if not is_trusted(info.st_uid):
            return True
        if stat.S_ISLNK(info.st_mode):
            continue
        # Where the sticky bit is set others cannot remove what is ours, but make what is not there yet.
        if info.st_mode & _OTHERS and (place == path or not info.st_mode & stat.S_ISVTX):
            return True
        if not info.st_mode & _ENTERED_BY_OTHERS:
            return False
    return False


def _check_owner(info: os.stat_result, path: str) -> None:
    if not is_trusted(info.st_uid):
        raise OSError(
            errno.EPERM,
            f"it belongs to the user {_name(info.st_uid)}, who could change what the job runs or where it writes; "
            f"{_CURE}, or set {VARIABLE}={_name(info.st_uid)} if you trust that user, see Troubleshooting: "
            "foreign cache file",
            path,
        )


def _check_file(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EPERM, "it is not a regular file")
    if os.name == "nt":
        return
    if not is_trusted(info.st_uid):
        raise OSError(
            errno.EPERM,
            f"it belongs to the user {_name(info.st_uid)}, and to unpickle it would run what is in it; "
            f"set {VARIABLE}={_name(info.st_uid)} if that is what you want, see Troubleshooting: foreign cache file",
        )
    if info.st_mode & stat.S_IWOTH and _named(os.environ.get(VARIABLE, "")) is not None:
        raise OSError(
            errno.EPERM,
            "everybody may write to it, and to unpickle it would run what is in it; chmod o-w cures that, "
            "see Troubleshooting: foreign cache file",
        )


def _check_link(path: str) -> None:
    directory = os.stat(os.path.dirname(path) or os.curdir)
    foreign = not (is_trusted(os.lstat(path).st_uid) and is_trusted(directory.st_uid))
    if foreign or directory.st_mode & _OTHERS:
        raise OSError(errno.EPERM, "it is a symbolic link that another user can have made")


@lru_cache(maxsize=8)
def _named(names: str) -> frozenset[int] | None:
    """The users that the variable names; None for everybody."""
    owners = set()
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name == "*":
            return None
        if name.isdigit():
            owners.add(int(name))
            continue
        import pwd

        try:
            owners.add(pwd.getpwnam(name).pw_uid)
        except KeyError:  # no such user here
            pass
    return frozenset(owners)


def _name(owner: int) -> str:
    try:
        import pwd

        return pwd.getpwuid(owner).pw_name
    except (ImportError, KeyError):
        return str(owner)
