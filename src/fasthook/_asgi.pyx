"""The gate asked for the ASGI door, about what a server has read."""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.time cimport monotonic_ns, time

from fasthook._core cimport (
    BAD_REQUEST, BAD_VERSION, FORBIDDEN, HEAD_TOO_LARGE, TARGET_TOO_LONG, TOO_LARGE, Gate, Route,
)
from fasthook._head cimport Head, path_of

import asyncio

from fasthook.telegram.networks import caller as _caller


@cython.final
cdef class Door:
    """The rules of the compiled edge for what ASGI shows of a request. `settings`: the limits and the addresses."""

    cdef Py_ssize_t max_target, max_head
    cdef int max_headers
    cdef object allowed, trusted

    def __init__(self, settings):
        self.max_target = settings.max_target
        self.max_head = settings.max_head
        self.max_headers = settings.max_headers
        self.allowed = settings.allow_ip
        self.trusted = settings.trusted_proxy

    def head(self, Gate gate not None, dict scope not None):
        """The gate's word on the head that is in a scope: a Verdict, or the Route to give the body to."""
        cdef Head head = Head.__new__(Head)
        cdef str method = scope["method"], version = scope["http_version"]
        cdef bytes name, value, path
        cdef Py_ssize_t size = 14 + len(method), target_size = 0  # 14: what stands around method and target
        cdef bint http11 = version == "1.1", over = False
        cdef int refused
        client = scope.get("client")
        caller = client[0] if client else None
        for name, value in scope["headers"]:
            size += PyBytes_GET_SIZE(name) + PyBytes_GET_SIZE(value) + 4
            if size > self.max_head or head.headers == self.max_headers:
                over = True  # servers have no limit of their own: what is behind this is not looked at
                break
            head.add(name, value)
        if self.trusted is not None and not over:
            caller = _caller(caller, head.sources(), self.trusted)
        if self.allowed is not None and caller not in self.allowed:
            if not over or self.trusted is None or caller not in self.trusted:
                return gate._refuse(None, FORBIDDEN)
        path = asked_path(scope, head.host, &target_size)
        cdef Route route = None if path is None else gate._find(path)
        if target_size > self.max_target:
            refused = TARGET_TOO_LONG
        elif over or size + target_size > self.max_head:
            refused = HEAD_TOO_LARGE
        elif not http11 and version not in ("1.0", "2", "3"):  # "2.0" stood in a request line
            refused = BAD_REQUEST if version == "0.9" else BAD_VERSION
        else:  # a Host is asked for only in HTTP/1.1, and codings are for nothing else
            refused = head.fault(method == "CONNECT", not http11, path, self.max_headers)
        if refused:
            return gate._refuse(route, refused)
        return head.judge(gate, route, method == "POST", caller, monotonic_ns())

    def body(self, Gate gate not None, Route route not None, bytes raw not None):
        """The gate's word on a body: a Verdict, or the admitted update."""
        if PyBytes_GET_SIZE(raw) > gate.max_body:
            return gate._refuse(route, TOO_LARGE)
        return gate.body(route, raw, time(), 0 if gate.chats is None else monotonic_ns())


cdef bytes asked_path(dict scope, bytes host, Py_ssize_t *target_size):
    """The path below the root path as the peer wrote it; None if the target is not one. `target_size`: its size."""
    cdef str path = scope["path"], root = scope.get("root_path")
    cdef bytes target, raw = scope.get("raw_path"), query = scope.get("query_string")
    if root and path.startswith(root) and path[len(root):len(root) + 1] in ("", "/"):
        path = path[len(root):]
    target = path.encode()
    target_size[0] = PyBytes_GET_SIZE(target if raw is None else raw)
    if query:
        target_size[0] += 1 + PyBytes_GET_SIZE(query)
    if raw is not None and b"%" in raw and not raw.endswith(target):
        return b""  # no hook's path is written with percent signs
    return target if path == "" or path[0] == "/" else path_of(target, host)


@cython.final
@cython.freelist(64)
cdef class Waiter:
    """A request that waits for its answer."""

    cdef object _verdict, _future

    @property
    def future(self):
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
            if self._verdict is not None:
                self._future.set_result(self._verdict)
        return self._future

    def answer(self, verdict):
        """Its answer, from the loop's own thread; for a request that is cancelled it is too late."""
        self._verdict = verdict
        if self._future is not None and not self._future.done():
            self._future.set_result(verdict)
