"""The state directory of a server: key, certificate, tokens, and last address."""

import os
from dataclasses import replace
from typing import Final

from ftpkit import private_files
from ftpkit.errors import LocalFileError
from ftpkit.net.address import Url
from ftpkit.net.tls_identity import Identity
from ftpkit.tokens import Grant, Tokens, new_token

OWNER: Final = "owner"


class StateDirectory:
    """A state directory, readable only by its owner.

    Missing files are created at first use, by one of several concurrent processes, and replaced
    atomically. Methods raise LocalFileError for a file that is unreadable or invalid.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        private_files.make_directory(self.path)
        self._certificate = os.path.join(self.path, "certificate.pem")
        self._key = os.path.join(self.path, "key.pem")
        self._tokens = os.path.join(self.path, "tokens.json")
        self._first_token = os.path.join(self.path, "first-token")
        self._url = os.path.join(self.path, "url")

    def identity(self) -> Identity:
        """Return the server's key and certificate."""
        if private_files.read(self._key) is None:
            with private_files.locked(self._key):
                if private_files.read(self._key) is None:
                    identity = Identity.make()
                    # The key is written last: a certificate without a key is made again.
                    private_files.replace(self._certificate, identity.certificate)
                    private_files.replace(self._key, identity.key)
        try:
            return Identity.read(self._certificate, self._key)
        except OSError as error:
            raise LocalFileError(f"cannot read {error.filename}: {error.strerror}") from None
        except ValueError as error:
            raise LocalFileError(f"invalid key or certificate in {self.path}: {error}") from None

    def tokens(self) -> Tokens:
        """Return the server's tokens; at first one of the user ``owner`` with all permissions."""
        tokens = Tokens(self._tokens)
        if not os.path.lexists(self._tokens):
            with private_files.locked(self._first_token):
                if not os.path.lexists(self._tokens):
                    token = new_token()
                    # Saved before it is valid, so that a valid one can always be printed.
                    private_files.replace(self._first_token, token.encode() + b"\n")
                    tokens.add(Grant(user=OWNER), token)
        # An invalid file is reported at the start of the server, not to its clients.
        tokens.grants()
        return tokens

    def first_token(self) -> str | None:
        """Return the token that the first start created, unless it has been removed."""
        tokens = self.tokens()
        token = (private_files.read(self._first_token) or b"").decode(errors="replace").strip()
        return token if tokens.find(token) else None

    def set_url(self, url: Url) -> None:
        """Save address and pin of the server, without a token."""
        with private_files.locked(self._url):
            private_files.replace(self._url, replace(url, token=None).login_url().encode() + b"\n")

    def url(self) -> Url | None:
        """Return the last saved address and pin; None if no server has run."""
        try:
            return Url.parse((private_files.read(self._url) or b"").decode().strip())
        except ValueError:
            return None
