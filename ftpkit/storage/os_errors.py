"""The only place that translates errors of the operating system into refusals."""

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from ftpkit.errors import Code, RefusedError

_MEANING: Final = {
    errno.ENOENT: (Code.NOT_FOUND, "no such file or directory: {}"),
    errno.ELOOP: (Code.NOT_FOUND, "no such file or directory: {}"),
    errno.ENOTDIR: (Code.NOT_A_DIRECTORY, "{} is not a directory, or is below a file"),
    errno.EISDIR: (Code.IS_A_DIRECTORY, "{} is a directory"),
    errno.EEXIST: (Code.EXISTS, "{} already exists"),
    errno.ENOTEMPTY: (Code.NOT_EMPTY, "the directory {} is not empty"),
    errno.ENAMETOOLONG: (Code.BAD_NAME, "the name {} is too long for the disk"),
    errno.EILSEQ: (Code.BAD_NAME, "the file system cannot store the name {}"),
    errno.EACCES: (Code.FORBIDDEN, "the server has no permission to access {}"),
    errno.EPERM: (Code.FORBIDDEN, "the server has no permission to access {}"),
    errno.EROFS: (Code.FORBIDDEN, "the disk is read-only"),
    errno.ENOSPC: (Code.NO_SPACE, "the disk is full"),
    errno.EDQUOT: (Code.QUOTA_EXCEEDED, "the disk quota is used up"),
    errno.EFBIG: (Code.TOO_LARGE, "{} is too large for the disk"),
    errno.EXDEV: (
        Code.UNSUPPORTED,
        "{} is on another file system than the root of the server: serve that file system itself",
    ),
    errno.ENXIO: (
        Code.NOT_FOUND,
        "no such file or directory: {}",
    ),  # a socket, or a device without a driver
    errno.ENODEV: (Code.NOT_FOUND, "no such file or directory: {}"),
    errno.EINVAL: (Code.BAD_NAME, "the file system rejects {}"),
    errno.EAGAIN: (Code.BUSY, "{} is locked by another program; try again"),
    errno.EBUSY: (Code.BUSY, "{} is in use by the system"),
    errno.EMFILE: (Code.BUSY, "the server has too many open files; try again"),
    errno.ENFILE: (Code.BUSY, "the server has too many open files; try again"),
}


@contextlib.contextmanager
def translate_os_errors(name: str) -> Iterator[None]:
    """Raise an OSError about ``name`` as a RefusedError.

    An error that a client cannot do anything about passes: it becomes ``internal``.
    """
    try:
        yield
    except OSError as error:
        # An error that Python code raises has a type, but no number.
        number = error.errno or _NUMBERS.get(type(error), 0)
        if number not in _MEANING:
            raise
        code, text = _MEANING[number]
        raise NamedRefusalError(code, text, name) from error


class NamedRefusalError(RefusedError):
    """A refusal whose ``text`` is a format string with the place of a ``name``."""

    def __init__(self, code: Code, text: str, name: str) -> None:
        super().__init__(code, text.format(repr(name)))
        self.text, self.name = text, name

    def renamed(self, name: str) -> "NamedRefusalError":
        """Return the same refusal for another name."""
        return NamedRefusalError(Code(self.code), self.text, name)


_NUMBERS: Final[dict[type[OSError], int]] = {
    FileNotFoundError: errno.ENOENT,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    FileExistsError: errno.EEXIST,
}
