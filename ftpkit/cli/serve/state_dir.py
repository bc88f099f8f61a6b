"""What a server keeps of its own: its key, its tokens, and where it was reached last."""

import os
from dataclasses import replace
from typing import Final

from ftpkit import private_files
from ftpkit.errors import LocalFileError
from ftpkit.net.address import Url
from ftpkit.net.tls_identity import Identity
from ftpkit.tokens import Grant, Tokens, new_token

OWNER: Final = "owner"


class State:
    """The state directory of a server; all that is in it is for its owner alone.

    What is missing is made at its first use. Each file is whole at any instant, and of several
    processes that find one missing one makes it. LocalFileError says what is wrong with one.
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
        """Return the server's key and its certificate."""
        if private_files.read(self._key) is None:
            with private_files.locked(self._key):
                if private_files.read(self._key) is None:
                    made = Identity.make()
                    # The key comes last: a certificate alone is what a kill in between left.
                    private_files.replace(self._certificate, made.certificate)
                    private_files.replace(self._key, made.key)
        try:
            return Identity.read(self._certificate, self._key)
        except OSError as error:
            raise LocalFileError(f"cannot read {error.filename}: {error.strerror}") from None
        except ValueError as error:
            raise LocalFileError(f"there is no identity in {self.path}: {error}") from None

    def tokens(self) -> Tokens:
        """Return the server's tokens: at first a single one, which allows ``owner`` everything."""
        tokens = Tokens(self._tokens)
        if not os.path.lexists(self._tokens):
            with private_files.locked(self._first_token):
                if not os.path.lexists(self._tokens):
                    token = new_token()
                    # It is written down before it holds: what holds can be told again.
                    private_files.replace(self._first_token, token.encode() + b"\n")
                    tokens.add(Grant(user=OWNER), token)
        # Who starts a server is to hear of a file with a fault, and not its clients.
        tokens.grants()
        return tokens

    def first_token(self) -> str | None:
        """Return the token that was made with the tokens, as long as it is one."""
        tokens = self.tokens()
        token = (private_files.read(self._first_token) or b"").decode(errors="replace").strip()
        return token if tokens.find(token) else None

    def set_url(self, url: Url) -> None:
        """Keep where the server is reached and by which key it is known; not its token."""
        with private_files.locked(self._url):
            private_files.replace(self._url, replace(url, token=None).login_url().encode() + b"\n")

    def url(self) -> Url | None:
        """Return where the server is, or was last, if one ever was."""
        try:
            return Url.parse((private_files.read(self._url) or b"").decode().strip())
        except ValueError:
            return None
