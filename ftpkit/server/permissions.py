"""Checks the permissions that a request needs against a grant."""

from dataclasses import replace

from ftpkit.errors import Code, RefusedError
from ftpkit.protocol import messages as m
from ftpkit.tokens import Grant, Permission


def permitted(request: m.Request, needs: frozenset[Permission], grant: Grant) -> m.Request:
    """Return ``request`` as ``grant`` allows it; RefusedError (``forbidden``) if it does not.

    Without "delete" a request cannot replace a file. The store is not consulted, so that a
    refusal does not reveal which names exist.
    """
    if isinstance(request, m.Begin) and request.basis:
        needs |= {Permission.READ}
    missing = needs - grant.can
    if missing:
        lacking = " and ".join(f"'{can}'" for can in Permission if can in missing)
        wanted = ",".join(can for can in Permission if can in grant.can | missing)
        raise RefusedError(
            Code.FORBIDDEN,
            f"this token does not have the permission {lacking}: ask the administrator for one "
            f"with it (ftpkit token add NAME --can {wanted})",
        )
    if isinstance(request, m.Put | m.Begin) and Permission.DELETE not in grant.can:
        return replace(request, overwrite=False)
    return request
