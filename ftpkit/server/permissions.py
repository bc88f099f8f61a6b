"""What each request needs, and how much of it a grant allows."""

from dataclasses import replace
from typing import Final

from ftpkit.access import Can, Grant
from ftpkit.errors import Code, RefusedError
from ftpkit.protocol import messages as m

NEEDS: Final[dict[type[m.Request], frozenset[Can]]] = {
    m.Hello: frozenset(),
    m.Auth: frozenset(),
    m.Ping: frozenset(),
    m.Stat: frozenset({Can.READ}),
    m.List: frozenset({Can.READ}),
    m.Get: frozenset({Can.READ}),
    m.Pull: frozenset({Can.READ}),
    m.DigestOf: frozenset({Can.READ}),
    m.Mkdir: frozenset({Can.WRITE}),
    m.Put: frozenset({Can.WRITE}),
    m.Begin: frozenset({Can.WRITE}),
    m.Write: frozenset({Can.WRITE}),
    m.Commit: frozenset({Can.WRITE}),
    m.Abort: frozenset({Can.WRITE}),
    m.Push: frozenset({Can.WRITE}),
    m.Delete: frozenset({Can.DELETE}),
    m.Rename: frozenset({Can.WRITE, Can.DELETE}),
    m.Status: frozenset({Can.ADMIN}),
}


def permitted(request: m.Request, grant: Grant) -> m.Request:
    """Return ``request`` as ``grant`` lets it run, or refuse it as ``forbidden``.

    Nothing is looked up for that, so that a refusal tells nothing of what there is. What
    ``NEEDS`` does not know nobody may do. Without "delete" nothing that stands is replaced.
    """
    needs = NEEDS.get(type(request))
    if needs is None:
        raise RefusedError(Code.FORBIDDEN, f"no token allows {request.op}")
    if isinstance(request, m.Begin) and request.basis:
        needs |= {Can.READ}
    missing = needs - grant.can
    if missing:
        raise RefusedError(
            Code.FORBIDDEN,
            f"{request.op} needs {_listed(missing)}, which this token does not allow",
        )
    if isinstance(request, m.Put | m.Begin) and Can.DELETE not in grant.can:
        return replace(request, overwrite=False)
    return request


def _listed(missing: frozenset[Can]) -> str:
    return " and ".join(can for can in Can if can in missing)
