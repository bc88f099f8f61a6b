"""Python without prctl(2), for every process with this directory on PYTHONPATH."""

import ctypes


class _NoLibrary:
    def __init__(self, name: str | None) -> None:
        raise OSError("there is no prctl here")


if __name__ == "sitecustomize":
    setattr(ctypes, "CDLL", _NoLibrary)  # noqa: B010  it stands before a class
