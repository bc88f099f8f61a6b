"""One house for several processes: they ask, and what one had is given back when it ends."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol.frame import Header
from ftpkit.server.auth.shared_limits import LocalLimits

Answer = Callable[..., None]
"""Tells a worker, as the fields of a message, what it has asked for."""


class SharedLimitsServer:
    """Answers what workers ask of ``shared_limits``, with the messages of ``RemoteLimits``.

    Whoever brings a message is not kept waiting: where room must be counted first, the
    answer comes from a thread of its own.
    """

    def __init__(self, shared_limits: LocalLimits) -> None:
        self._shared_limits = shared_limits
        self._lock = threading.Lock()
        self._parts: dict[int, _WorkerShare] = {}

    def join(self, worker: int) -> None:
        """Let a worker ask, by its number."""
        with self._lock:
            self._parts[worker] = _WorkerShare()

    def leave(self, worker: int) -> None:
        """Give back what a worker had: its process has ended."""
        with self._lock:
            part = self._parts.pop(worker)
        for user in part.users.elements():
            self._shared_limits.leave(user)
        for number in part.taken:
            # It may be on the disk or not.
            self._shared_limits.commit(number)
        if part.taken:
            self._shared_limits.freed("")

    def passed(self, user: str, worker: int, successor: int | None) -> None:
        """Note that another worker, or none, has a connection of ``user`` now."""
        with self._lock:
            self._parts[worker].users[user] -= 1
            if successor is not None:
                self._parts[successor].users[user] += 1
        if successor is None:
            self._shared_limits.leave(user)

    def receive(self, worker: int, header: Header, answer: Answer) -> None:
        """Do what a worker asks for."""
        match header["what"]:
            case "enter":
                answer(entered=self._enter(worker, header["user"], header["most"]))
            case "leave":
                with self._lock:
                    self._parts[worker].users[header["user"]] -= 1
                self._shared_limits.leave(header["user"])
            case "failed":
                answer(wait_s=self._shared_limits.failed(header["host"]))
            case "take":
                self._take(worker, header, answer)
            case "keep" | "give_back" as what:
                number = header["number"]
                with self._lock:
                    self._parts[worker].taken.remove(number)
                (self._shared_limits.commit if what == "keep" else self._shared_limits.cancel)(
                    number
                )
                answer()
            case "freed":
                self._shared_limits.freed(header["name"])
                answer()
            case "moved":
                self._shared_limits.moved(header["name"], header["to"])
                answer()

    def _enter(self, worker: int, user: str, most: int | None) -> bool:
        entered = self._shared_limits.enter(user, most)
        if entered:
            with self._lock:
                self._parts[worker].users[user] += 1
        return entered

    def _take(self, worker: int, header: Header, answer: Answer) -> None:
        wanted = header["name"], header["count"], header["under"], header["quota"]

        def reserve(reserve: Callable[[str, int, str, int | None], int | None]) -> bool:
            try:
                number = reserve(*wanted)
            except RefusedError as refusal:
                answer(refused=refusal.code, message=str(refusal))
                return True
            if number is not None:
                self._taken(worker, number)
                answer(number=number)
            return number is not None

        if not reserve(self._shared_limits.reserve_now):
            threading.Thread(
                target=reserve, args=(self._shared_limits.reserve,), name="ftpkit-take", daemon=True
            ).start()

    def _taken(self, worker: int, number: int) -> None:
        with self._lock:
            part = self._parts.get(worker)
            if part is not None:
                part.taken.add(number)
        if part is None:
            self._shared_limits.cancel(number)


@dataclass(slots=True)
class _WorkerShare:
    """What one worker has: connections of users, and room that was taken."""

    users: Counter[str] = field(default_factory=Counter)
    taken: set[int] = field(default_factory=set)


class RemoteLimits:
    """The house of a server as one of its workers has it.

    ``ask`` sends a message and returns the answer; ``tell`` only sends one. While ``counts``
    is false nobody has a quota, and nothing needs to be told of what is stored.
    """

    def __init__(
        self,
        ask: Callable[..., Header],
        tell: Callable[..., object],
        counts: Callable[[], bool],
    ) -> None:
        self._ask, self._tell, self._counts = ask, tell, counts

    def enter(self, user: str, most: int | None) -> bool:
        """Let one more connection of ``user`` in, unless it has ``most``."""
        return bool(self._ask(what="enter", user=user, most=most)["entered"])

    def leave(self, user: str) -> None:
        """Note that a connection of ``user`` has ended."""
        self._tell(what="leave", user=user)

    def failed(self, host: str) -> float:
        """Note a bad token; return how long its refusal is to wait."""
        return float(self._ask(what="failed", host=host)["wait_s"])

    def reserve(self, name: str, count: int, under: str, quota: int | None) -> int:
        """Take room, or refuse it; 0 is what nobody counts."""
        if quota is None and not self._counts():
            return 0
        answer = self._ask(what="take", name=name, count=count, under=under, quota=quota)
        if "refused" in answer:
            raise RefusedError(Code(answer["refused"]), answer["message"])
        return int(answer["number"])

    # What follows is answered, too: another worker may be asked right after.

    def commit(self, number: int) -> None:
        """Note that what was taken is on the disk."""
        if number:
            self._ask(what="keep", number=number)

    def cancel(self, number: int) -> None:
        """Note that what was taken is not on the disk."""
        if number:
            self._ask(what="give_back", number=number)

    def freed(self, name: str) -> None:
        """Note that there may be less of ``name``."""
        if self._counts():
            self._ask(what="freed", name=name)

    def moved(self, name: str, to: str) -> None:
        """Note that what stood under ``name`` stands under ``to``."""
        if self._counts():
            self._ask(what="moved", name=name, to=to)
