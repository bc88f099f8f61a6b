"""The permissions that each request needs, checked against a grant."""

from dataclasses import replace
from typing import Final

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol import messages as m
from ftpkit.tokens import Grant, Permission

NEEDS: Final[dict[type[m.Request], frozenset[Permission]]] = {
    m.Hello: frozenset(),
    m.Auth: frozenset(),
    m.Ping: frozenset(),
    m.Stat: frozenset({Permission.READ}),
    m.List: frozenset({Permission.READ}),
    m.Get: frozenset({Permission.READ}),
    m.Pull: frozenset({Permission.READ}),
    m.DigestRequest: frozenset({Permission.READ}),
    m.Mkdir: frozenset({Permission.WRITE}),
    m.Put: frozenset({Permission.WRITE}),
    m.Begin: frozenset({Permission.WRITE}),
    m.Write: frozenset({Permission.WRITE}),
    m.Commit: frozenset({Permission.WRITE}),
    m.Abort: frozenset({Permission.WRITE}),
    m.Push: frozenset({Permission.WRITE}),
    m.Delete: frozenset({Permission.DELETE}),
    m.Rename: frozenset({Permission.WRITE, Permission.DELETE}),
    m.Status: frozenset({Permission.ADMIN}),
}


def permitted(request: m.Request, grant: Grant) -> m.Request:
    """Return ``request`` as ``grant`` allows it; RefusedError (``forbidden``) if it does not.

    Without "delete" a request cannot replace a file. A request that ``NEEDS`` lacks is always
    refused. The store is not consulted, so that a refusal does not reveal which names exist.
    """
    needs = NEEDS.get(type(request))
    if needs is None:
        raise RefusedError(Code.FORBIDDEN, f"{request.op} is not allowed")
    if isinstance(request, m.Begin) and request.basis:
        needs |= {Permission.READ}
    missing = needs - grant.can
    if missing:
        raise RefusedError(
            Code.FORBIDDEN,
            f"{request.op} needs {_listed(missing)}, which this token does not allow",
        )
    if isinstance(request, m.Put | m.Begin) and Permission.DELETE not in grant.can:
        return replace(request, overwrite=False)
    return request


def _listed(missing: frozenset[Permission]) -> str:
    return " and ".join(can for can in Permission if can in missing)
