"""Authentication: which token a connection shows, and what its user may do and store."""

import logging
import threading
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.server.auth.shared_limits import AccountQuota, SharedLimits
from ftpkit.storage.api import QuotaAwareStore, Store
from ftpkit.storage.prefix_store import PrefixStore
from ftpkit.tokens import Grant, Tokens

# Interval between checks of open sessions: one whose token was removed ends within a second.
CHECK_INTERVAL_S: Final = 0.25

log = logging.getLogger("ftpkit.server")


class Authenticator:
    """Authenticates tokens, and delays failed attempts exponentially per client address.

    No attempt is delayed once ``stopping`` is set.
    """

    def __init__(
        self, tokens: Tokens, shared_limits: SharedLimits, store: Store, stopping: threading.Event
    ) -> None:
        self._tokens, self._shared_limits, self._store = tokens, shared_limits, store
        self._stopping = stopping
        self.is_valid, self.roots = tokens.is_valid, tokens.roots

    def authenticate(self, token: str, peer: str) -> Grant:
        """Return the grant of ``token``; RefusedError, after a delay, if there is none."""
        grant = self._tokens.find(token)
        if grant is None:
            log.warning("auth", extra={"fields": {"peer": peer, "outcome": Code.AUTH_FAILED}})
            host = peer.rpartition(":")[0].strip("[]")
            self._stopping.wait(self._shared_limits.login_failed(host))
            raise RefusedError(Code.AUTH_FAILED, "invalid or expired token")
        return grant

    def acquire(self, grant: Grant) -> None:
        """Count one more connection of a user, until ``release``; RefusedError over the limit."""
        if not self._shared_limits.acquire(grant.user, grant.connections):
            raise RefusedError(
                Code.TOO_MANY_CONNECTIONS,
                f"this token allows {grant.connections} connections at a time",
            )

    def release(self, grant: Grant) -> None:
        self._shared_limits.release(grant.user)

    def store_for(self, grant: Grant) -> Store:
        """Return the store as a user sees it."""
        store = self._store
        if isinstance(store, QuotaAwareStore):
            quota = AccountQuota(self._shared_limits.quotas, grant.under, grant.quota)
            store = store.with_quota(quota)
        elif grant.quota is not None:
            raise RefusedError(
                Code.UNSUPPORTED, "this token has a quota, which the server's store cannot enforce"
            )
        return PrefixStore(store, grant.under) if grant.under else store

    def open_home(self, grant: Grant) -> Store:
        """Return the store as a user sees it; its root directory is made if it is missing."""
        store = self.store_for(grant)
        try:
            store.mkdir("")
        except RefusedError as refusal:
            # A user cannot mend it, and does not learn where the directory is.
            fields = {"user": grant.user, "under": grant.under, "error": refusal.code}
            log.error("error", extra={"fields": fields})
            raise RefusedError(
                Code(refusal.code),
                "cannot open the directory of this token; the server's log says why",
            ) from refusal
        return store
