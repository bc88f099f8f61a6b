"""What the operating system's errors mean to a client; the only place that translates them."""

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from ftpkit.errors import Code, RefusedError

_MEANING: Final = {
    errno.ENOENT: (Code.NOT_FOUND, "there is no {}"),
    errno.ELOOP: (Code.NOT_FOUND, "there is no {}"),
    errno.ENOTDIR: (Code.NOT_A_DIRECTORY, "a part of {} is not a directory"),
    errno.EISDIR: (Code.IS_A_DIRECTORY, "{} is a directory"),
    errno.EEXIST: (Code.EXISTS, "{} exists already"),
    errno.ENOTEMPTY: (Code.NOT_EMPTY, "the directory {} is not empty"),
    errno.ENAMETOOLONG: (Code.BAD_NAME, "the name {} is too long for the disk"),
    errno.EILSEQ: (Code.BAD_NAME, "the disk cannot hold the name {}"),
    errno.EACCES: (Code.FORBIDDEN, "no permission to touch {}"),
    errno.EPERM: (Code.FORBIDDEN, "no permission to touch {}"),
    errno.EROFS: (Code.FORBIDDEN, "the disk is read-only"),
    errno.ENOSPC: (Code.NO_SPACE, "the disk is full"),
    errno.EDQUOT: (Code.QUOTA_EXCEEDED, "the disk quota is used up"),
    errno.EFBIG: (Code.TOO_LARGE, "{} is too large for the disk"),
    errno.EXDEV: (Code.UNSUPPORTED, "{} lies on another disk than the root"),
    errno.ENXIO: (Code.NOT_FOUND, "there is no {}"),  # a socket, or a device without a driver
    errno.ENODEV: (Code.NOT_FOUND, "there is no {}"),
    errno.EINVAL: (Code.BAD_NAME, "the disk cannot have {} there"),
    errno.EAGAIN: (Code.BUSY, "another program has {} for itself; try again"),
    errno.EBUSY: (Code.BUSY, "the system uses {}"),
    errno.EMFILE: (Code.BUSY, "too many files are open; try again"),
    errno.ENFILE: (Code.BUSY, "too many files are open; try again"),
}


@contextlib.contextmanager
def translate_os_errors(name: str) -> Iterator[None]:
    """Turn an OSError about ``name`` into the RefusedError that a client understands.

    An error that no client can do anything about passes: it becomes ``internal``.
    """
    try:
        yield
    except OSError as error:
        # The number alone does not tell an error that os raises by itself.
        number = error.errno or _PLAIN.get(type(error), 0)
        if number not in _MEANING:
            raise
        code, text = _MEANING[number]
        raise NamedRefusalError(code, text, name) from error


class NamedRefusalError(RefusedError):
    """A refusal whose ``text`` has a place for a ``name``."""

    def __init__(self, code: Code, text: str, name: str) -> None:
        super().__init__(code, text.format(ascii(name)))
        self.text, self.name = text, name

    def of(self, name: str) -> "NamedRefusalError":
        """Return the same refusal with another name."""
        return NamedRefusalError(Code(self.code), self.text, name)


_PLAIN: Final[dict[type[OSError], int]] = {
    FileNotFoundError: errno.ENOENT,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    FileExistsError: errno.EEXIST,
}
