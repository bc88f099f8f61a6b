"""A store whose long operations wait until a test lets them run."""

import threading
from typing import Any


class Gated:
    """Wraps a store: operations that can be answered with ``pending`` wait for ``gate``.

    ``begun`` lists the operations that wait, and ``came`` is set by the first one; those in
    ``waved_through`` neither wait nor count.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self.gate = threading.Event()
        self.came = threading.Event()
        self.begun: list[str] = []
        self.waved_through: set[str] = set()

    def read(self, name: str) -> Any:
        self._pass("read")
        return self._store.read(name)

    def upload(self, identity: str, *, owner: str) -> Any:
        # Writes take hold of uploads too, but in the thread of their connection.
        if threading.current_thread().name == "ftpkit-job":
            self._pass("upload")
        return self._store.upload(identity, owner=owner)

    def delete(self, name: str, **keys: Any) -> None:
        self._pass("delete")
        self._store.delete(name, **keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _pass(self, what: str) -> None:
        if what in self.waved_through:
            return
        self.begun.append(what)
        self.came.set()
        assert self.gate.wait(30.0)
