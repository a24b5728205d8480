"""The gate asked for the ASGI door, about what a server has read."""

from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.time cimport monotonic_ns, time

from fasthook._core cimport FORBIDDEN, TOO_LARGE, Gate, Route
from fasthook._head cimport Head


def asgi_head(Gate gate not None, dict scope not None, addresses):
    """The gate's word on a head that an ASGI server has read: a Verdict, or the Route to give the body to.

    `addresses`: None, or called with the peer's address and X-Forwarded-For; it answers who calls and whether it may.
    """
    cdef Head head = Head.__new__(Head)
    for name, value in scope["headers"]:
        head.add(name, value)
    client = scope.get("client")
    caller = client[0] if client else None
    if addresses is not None:
        caller, allowed = addresses(caller, (head.forwarded or b"").decode("latin-1"))
        if not allowed:
            return gate._refuse(None, FORBIDDEN)
    cdef str path = scope["path"], root = scope.get("root_path")
    if root and path.startswith(root):
        path = path[len(root):]
    return head.judge(gate, gate._find(path.encode()), scope["method"] == "POST", caller, monotonic_ns())


def asgi_body(Gate gate not None, Route route not None, bytes raw not None):
    """The gate's word on a body: a Verdict, or the admitted update."""
    if PyBytes_GET_SIZE(raw) > gate.max_body:
        return gate._refuse(route, TOO_LARGE)
    return gate.body(route, raw, time(), 0 if gate.chats is None else monotonic_ns())
