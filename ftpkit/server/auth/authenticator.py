"""The gate of a server that asks for tokens: who may pass, and for how long."""

import logging
import threading
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.server.auth.shared_limits import AccountQuota, SharedLimits
from ftpkit.storage.api import QuotaAwareStore, Store
from ftpkit.storage.prefix_store import PrefixStore
from ftpkit.storage.quota_store import QuotaStore
from ftpkit.tokens import Grant, Tokens

# How often those who are in are looked after: what was taken back ends within a second.
LOOKS_S: Final = 0.25

log = logging.getLogger("ftpkit.server")


class Authenticator:
    """Lets in whoever shows a good token; a bad one is told so late, and the later the more come.

    ``stopping`` says that nobody waits any longer.
    """

    def __init__(
        self,
        tokens: Tokens,
        shared_limits: SharedLimits,
        store: QuotaAwareStore,
        stopping: threading.Event,
    ) -> None:
        self._tokens, self._shared_limits, self._store = tokens, shared_limits, store
        self._stopping = stopping

    def authenticate(self, token: str, peer: str) -> Grant:
        """Return what ``token`` grants, or refuse it after a while."""
        grant = self._tokens.find(token)
        if grant is None:
            log.warning("auth", extra={"fields": {"peer": peer, "outcome": Code.AUTH_FAILED}})
            self._stopping.wait(self._shared_limits.failed(peer.rpartition(":")[0].strip("[]")))
            raise RefusedError(Code.AUTH_FAILED, "this token is not good here")
        return grant

    def enter(self, grant: Grant) -> None:
        """Count one more connection of a user, until ``leave``; refuse one too many."""
        if not self._shared_limits.enter(grant.user, grant.connections):
            raise RefusedError(
                Code.TOO_MANY_CONNECTIONS,
                f"this token allows {grant.connections} connections at a time",
            )

    def leave(self, grant: Grant) -> None:
        """Count one connection less."""
        self._shared_limits.leave(grant.user)

    def store_for(self, grant: Grant) -> Store:
        """Return the store as a user sees it."""
        limited = QuotaStore(
            self._store, AccountQuota(self._shared_limits, grant.under, grant.quota)
        )
        return PrefixStore(limited, grant.under) if grant.under else limited

    def home_of(self, grant: Grant) -> Store:
        """Return the same, for a user who comes in: the directory is made if it is missing."""
        store = self.store_for(grant)
        try:
            store.mkdir("")
        except RefusedError as refusal:
            # Who comes in cannot mend it, and is not told where it is.
            fields = {"user": grant.user, "under": grant.under, "error": refusal.code}
            log.error("error", extra={"fields": fields})
            raise RefusedError(
                Code(refusal.code), "the directory of this token cannot be used"
            ) from refusal
        return store

    def is_valid(self, grant: Grant) -> bool:
        """Whether it is still granted."""
        return self._tokens.is_valid(grant)
