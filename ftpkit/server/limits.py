"""The settings that can change while a server runs."""

from dataclasses import dataclass
from typing import Final

from ftpkit.scheduling.policies import DEFAULT_POLICY, POLICIES, Policy
from ftpkit.scheduling.rate_limit import Direction, Rates
from ftpkit.scheduling.scheduler import Scheduler

_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Connection limits, timeouts in seconds, and how transfers share the server.

    At most ``slots`` transfers move at a time, and ``bytes_per_s`` bytes per second in each
    direction; None is no limit. ``schedule`` names the policy that decides which transfer moves
    next. Unfinished uploads without a client are deleted after ``expire_uploads_s``.
    """

    max_connections: int = 1024
    max_connections_per_address: int = 1000
    idle_timeout_s: float = 300.0
    stall_timeout_s: float = 30.0
    expire_uploads_s: float = 7 * _DAY_S
    schedule: str = DEFAULT_POLICY
    slots: int | None = None
    bytes_per_s: float | None = None

    @property
    def rates(self) -> Rates:
        """The rate limit of each direction; empty without a limit."""
        return {} if self.bytes_per_s is None else dict.fromkeys(Direction, self.bytes_per_s)

    @property
    def policy(self) -> Policy:
        return POLICIES[self.schedule]

    def new_scheduler(self) -> Scheduler:
        return Scheduler(self.policy, slots=self.slots, bytes_per_s=self.rates)


DEFAULT_LIMITS: Final = Limits()
