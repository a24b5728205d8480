"""The scan: from the raw bytes of a body to what the gate and the dispatcher need of it, in one pass. No I/O."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memset

import json

cdef extern from "_native.h" nogil:
    const unsigned char *fh_plain_run(const unsigned char *at, const unsigned char *end) noexcept
    const unsigned char *fh_unicode_run(const unsigned char *at, const unsigned char *end) noexcept
    int fh_hex(unsigned char b) noexcept

#: The kinds of update, Bot API "Update"; 0 is one this version does not know.
KINDS = (
    "unknown", "message", "edited_message", "channel_post", "edited_channel_post", "callback_query",
    "inline_query", "chosen_inline_result", "business_connection", "business_message",
    "edited_business_message", "deleted_business_messages", "message_reaction", "message_reaction_count",
    "shipping_query", "pre_checkout_query", "purchased_paid_media", "poll", "poll_answer",
    "my_chat_member", "chat_member", "chat_join_request", "chat_boost", "removed_chat_boost",
)

cdef enum:
    CALLBACK_QUERY = 5
    BUSINESS_CONNECTION = 8
    MESSAGE_REACTION = 12
    POLL_ANSWER = 18
    MAX_DEPTH = 512
    MAX_NAME = 32          # no name we look for is as long
    MAX_DIGITS = 18        # what an int64 holds for sure

cdef const char *kind_name[N_KINDS]
cdef Py_ssize_t kind_len[N_KINDS]
cdef list _kind_bytes = [name.encode() for name in KINDS]  # keeps the pointers alive

cdef int _i
for _i in range(N_KINDS):
    kind_name[_i] = PyBytes_AS_STRING(_kind_bytes[_i])
    kind_len[_i] = PyBytes_GET_SIZE(_kind_bytes[_i])


cdef enum Place:  # what a JSON value is to us
    NOTHING, ROOT, KIND, MESSAGE, CHAT, USER, UPDATE_ID, CHAT_ID, USER_ID, ARRAY, REFUSED

cdef enum Expect:
    VALUE, FIRST_VALUE, NAME, FIRST_NAME

cdef struct Cursor:  # every read is checked against the end
    const unsigned char *at
    const unsigned char *end


cdef inline unsigned char peek(const Cursor *c) noexcept nogil:
    return c.at[0] if c.at < c.end else 0


cdef inline unsigned char skip_space(Cursor *c) noexcept nogil:
    """Go to the next byte that is not white space; answer it, 0 at the end."""
    while c.at < c.end:
        if c.at[0] > 0x20 or not (c.at[0] == 0x20 or c.at[0] == 0x0A or c.at[0] == 0x0D or c.at[0] == 0x09):
            return c.at[0]
        c.at += 1
    return 0


cdef inline bint skip_bytes(Cursor *c, const char *text, Py_ssize_t size) noexcept nogil:
    if c.end - c.at < size or memcmp(c.at, text, size) != 0:
        return False
    c.at += size
    return True


cdef Cursor unescape(Cursor c, int *unit) noexcept nogil:
    """Skip one escape, the cursor on its backslash; `unit`: the code unit it stands for, -1 if it is broken."""
    cdef int value = 0, digit, i
    cdef unsigned char b
    unit[0] = -1
    if c.end - c.at < 2:
        return c
    b = c.at[1]
    c.at += 2
    if b == c'"' or b == c'\\' or b == c'/':
        unit[0] = b
    elif b == c'b' or b == c'f' or b == c'n' or b == c'r' or b == c't':
        unit[0] = 1  # a control character: in no name we look for
    elif b == c'u' and c.end - c.at >= 4:
        for i in range(4):
            digit = fh_hex(c.at[i])
            if digit < 0:
                return c
            value = value << 4 | digit
        c.at += 4
        unit[0] = value
    return c


cdef inline bint skip_string(Cursor *c, bint *escaped) noexcept nogil:
    """From behind the opening quote to behind the closing one. Bytes above 0x7f are not looked at."""
    cdef int unit
    cdef const unsigned char *run
    while True:
        c.at = fh_plain_run(c.at, c.end)
        if c.at >= c.end:
            return False
        if c.at[0] == c'"':
            c.at += 1
            return True
        if c.at[0] != c'\\':
            return False
        escaped[0] = True
        run = fh_unicode_run(c.at, c.end)
        if run != c.at:
            c.at = run
            continue
        c[0] = unescape(c[0], &unit)
        if unit < 0:
            return False


cdef inline Py_ssize_t skip_digits(Cursor *c, int64_t *value) noexcept nogil:
    cdef const unsigned char *start = c.at
    cdef int64_t n = 0
    while c.at < c.end and c'0' <= c.at[0] <= c'9':
        if c.at - start < MAX_DIGITS:
            n = n * 10 + (c.at[0] - c'0')
        c.at += 1
    value[0] = n
    return c.at - start


cdef inline bint skip_number(Cursor *c, int64_t *value, bint *whole) noexcept nogil:
    """A number by RFC 8259, section 6; `whole` if it is an integer of at most 18 digits."""
    cdef int64_t ignored
    cdef bint negative = c.at[0] == c'-'
    cdef Py_ssize_t digits
    if negative:
        c.at += 1
    if peek(c) == c'0':
        c.at += 1
        value[0] = 0
        whole[0] = True
    else:
        digits = skip_digits(c, value)
        if digits == 0:
            return False
        whole[0] = digits <= MAX_DIGITS
    if negative:
        value[0] = -value[0]
    if peek(c) == c'.':
        c.at += 1
        whole[0] = False
        if skip_digits(c, &ignored) == 0:
            return False
    if peek(c) | 0x20 == c'e':
        c.at += 1
        whole[0] = False
        if peek(c) == c'+' or peek(c) == c'-':
            c.at += 1
        return skip_digits(c, &ignored) > 0
    return True


cdef inline bint same(const unsigned char *name, Py_ssize_t size, const char *text, Py_ssize_t length) noexcept nogil:
    return size == length and memcmp(name, text, size) == 0


cdef int find_kind(const unsigned char *name, Py_ssize_t size) noexcept nogil:
    cdef int i
    for i in range(1, N_KINDS):
        if same(name, size, kind_name[i], kind_len[i]):
            return i
    return 0


cdef Place root_member(const unsigned char *name, Py_ssize_t size, Py_ssize_t at, Scan *found) noexcept nogil:
    """A name in the update itself: its id, or the one that says its kind.

    The first name we know is the kind; where none is known, the first name there is.
    A name that comes twice counts as its last (as in any JSON reader), but for update_id.
    """
    cdef int kind
    if same(name, size, "update_id", 9):
        if found.has_id:
            return REFUSED
        found.has_id = True
        return UPDATE_ID
    kind = find_kind(name, size)
    if found.name_at >= 0 and (kind == 0 or (found.kind != 0 and found.kind != kind)):
        return NOTHING
    found.kind = kind
    found.name_at = at
    found.name_len = size
    found.has_chat = found.has_user = False
    return KIND


cdef inline const char *user_name(int kind) noexcept nogil:
    if kind == BUSINESS_CONNECTION or kind == MESSAGE_REACTION or kind == POLL_ANSWER:
        return "user"
    return "from"


cdef inline Place kind_member(const unsigned char *name, Py_ssize_t size, Scan *found) noexcept nogil:
    if size == 4:
        if memcmp(name, "chat", 4) == 0 and found.kind != CALLBACK_QUERY:
            found.has_chat = False
            return CHAT
        if memcmp(name, user_name(found.kind), 4) == 0:
            found.has_user = False
            return USER
    elif found.kind == CALLBACK_QUERY and same(name, size, "message", 7):
        found.has_chat = False
        return MESSAGE
    return NOTHING


cdef inline Place member(
    Place inside, const unsigned char *name, Py_ssize_t size, Py_ssize_t at, Scan *found
) noexcept nogil:
    """What the value of this name is, in an object that is `inside`."""
    if inside == ROOT:
        return root_member(name, size, at, found)
    if inside == KIND:
        return kind_member(name, size, found)
    if inside == MESSAGE and same(name, size, "chat", 4):
        found.has_chat = False
        return CHAT
    if inside == CHAT and same(name, size, "id", 2):
        found.has_chat = False
        return CHAT_ID
    if inside == USER and same(name, size, "id", 2):
        found.has_user = False
        return USER_ID
    return NOTHING


cdef Place escaped_member(
    Place inside, const unsigned char *name, Py_ssize_t size, Py_ssize_t at, Scan *found
) noexcept nogil:
    """The same for a name with escapes in it."""
    cdef unsigned char plain[MAX_NAME]
    cdef Py_ssize_t n = 0
    cdef int unit
    cdef Place place
    cdef Cursor c
    c.at = name
    c.end = name + size
    while c.at < c.end and n < MAX_NAME:
        if c.at[0] == c'\\':
            c = unescape(c, &unit)
        else:
            unit = c.at[0]
            c.at += 1
        plain[n] = unit if 0 < unit < 0x80 else 1
        n += 1
    place = member(inside, plain, n, at, found)
    if place == KIND:
        found.name_len = size
    return place


cdef inline bint take_number(Place place, int64_t value, bint whole, bint negative, Scan *found) noexcept nogil:
    if place == UPDATE_ID:
        found.update_id = value
        return whole and not negative and value <= MAX_UPDATE_ID
    if place == CHAT_ID:
        found.chat_id = value
        found.has_chat = whole
    elif place == USER_ID:
        found.user_id = value
        found.has_user = whole
    return True


cdef Cursor telegram_order(Cursor start, Scan *found) noexcept nogil:
    """The fast path: `{"update_id":N,` a newline or none, `"kind":{`, as Telegram's server writes it.

    The cursor behind the second brace, if the body begins so with a kind that we know; else where it was.
    """
    cdef int kind
    cdef const unsigned char *name
    cdef Cursor at = start
    cdef Cursor *c = &at
    if not skip_bytes(c, b'{"update_id":', 13) or peek(c) == c'0' or not 0 < skip_digits(c, &found.update_id) <= 10:
        return start
    if not skip_bytes(c, b',', 1):
        return start
    if peek(c) == c'\n':
        c.at += 1
    if not skip_bytes(c, b'"', 1):
        return start
    name = c.at
    for kind in range(1, N_KINDS):
        if c.end - c.at > kind_len[kind] + 3 and memcmp(c.at, kind_name[kind], kind_len[kind]) == 0:
            c.at += kind_len[kind]
            if skip_bytes(c, b'":{', 3):
                found.kind = kind
                found.name_at = name - start.at
                found.name_len = kind_len[kind]
                found.has_id = True
                return at
            c.at = name
    return start


cdef bint scan_update(const unsigned char *data, Py_ssize_t size, Scan *found) noexcept nogil:
    """One pass over the body: is it JSON (RFC 8259), an object, and an update? What is in it?"""
    cdef unsigned char stack[MAX_DEPTH + 1]  # what each open object or array is to us
    cdef int depth = 0
    cdef Expect expect = VALUE
    cdef Place place = ROOT
    cdef Cursor c
    cdef const unsigned char *start
    cdef unsigned char b
    cdef int64_t value
    cdef bint whole, escaped
    c.at = data
    c.end = data + size
    memset(found, 0, sizeof(Scan))
    found.name_at = -1
    c = telegram_order(c, found)
    if c.at != data:
        stack[1] = ROOT
        stack[2] = KIND
        depth = 2
        expect = FIRST_NAME
    elif skip_space(&c) != c'{':
        return False

    while True:
        b = skip_space(&c)
        if expect >= NAME and not (expect == FIRST_NAME and b == c'}'):
            if b != c'"':
                return False
            c.at += 1
            start = c.at
            escaped = False
            if not skip_string(&c, &escaped):
                return False
            place = <Place>stack[depth]
            if place != NOTHING:
                if escaped:
                    place = escaped_member(place, start, c.at - 1 - start, start - data, found)
                else:
                    place = member(place, start, c.at - 1 - start, start - data, found)
                if place == REFUSED:
                    return False
            if skip_space(&c) != c':':
                return False
            c.at += 1
            b = skip_space(&c)
            expect = VALUE

        if expect != FIRST_NAME and not (expect == FIRST_VALUE and b == c']'):
            if b == c'{' or b == c'[':
                if place == UPDATE_ID or depth == MAX_DEPTH:
                    return False
                depth += 1
                c.at += 1
                if b == c'{':
                    stack[depth] = place if place <= USER else NOTHING
                    expect = FIRST_NAME
                else:
                    stack[depth] = ARRAY
                    place = NOTHING
                    expect = FIRST_VALUE
                continue
            if b == c'"':
                c.at += 1
                if place == UPDATE_ID or not skip_string(&c, &escaped):
                    return False
            elif b == c'-' or c'0' <= b <= c'9':
                if not skip_number(&c, &value, &whole) or not take_number(place, value, whole, b == c'-', found):
                    return False
            elif place == UPDATE_ID or not (
                skip_bytes(&c, b"true", 4) or skip_bytes(&c, b"false", 5) or skip_bytes(&c, b"null", 4)
            ):
                return False
            b = skip_space(&c)

        # behind a value, or before the bracket that closes an empty object or array
        while b == c'}' or b == c']':
            if (b == c']') != (stack[depth] == ARRAY):
                return False
            c.at += 1
            depth -= 1
            b = skip_space(&c)
            if depth == 0:
                return c.at == c.end and found.has_id
        if b != c',':
            return False
        c.at += 1
        if stack[depth] == ARRAY:
            place = NOTHING
            expect = VALUE
        else:
            expect = NAME


def scan(raw: bytes) -> Admitted | None:
    """Read `raw` as an update: what was found, or None if it is not one.

    Not an update: not JSON by RFC 8259 (invalid UTF-8 inside strings is let through), not an object, nested
    deeper than 512, or without exactly one `update_id` that is an integer from 0 to 2**53 - 1. (Telegram's are
    below 2 * 10**9; the range is what JSON carries exactly, so that a wider id would not be lost.)
    """
    cdef Scan found
    cdef Admitted update
    if not scan_update(<const unsigned char *>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), &found):
        return None
    update = Admitted.__new__(Admitted)
    update._fill(&found, raw)
    return update


def restore(cls: type[Admitted], raw: bytes, bot_id: int, received_at: float, attempt: int) -> Admitted:
    """An update that was kept: what was admitted once, as it was. ValueError if `raw` is not an update."""
    cdef Scan found
    cdef Admitted update
    if not scan_update(<const unsigned char *>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), &found):
        raise ValueError("not an update")
    update = <Admitted?>cls.__new__(cls)
    update._fill(&found, raw)
    update.bot_id = bot_id
    update.received_at = received_at
    update.attempt = attempt
    return update


@cython.freelist(256)
cdef class Admitted:
    """What the scan found in an update, and the bytes it came as. `fasthook.Update` adds the rest."""

    def __cinit__(self):
        self.attempt = 1
        self._name_at = -1

    cdef void _fill(self, const Scan *found, bytes raw) noexcept:
        self.raw = raw
        self.update_id = found.update_id
        self._chat_id = found.chat_id
        self._user_id = found.user_id
        self._has_chat = found.has_chat
        self._has_user = found.has_user
        self._kind = found.kind
        self._name_at = found.name_at
        self._name_len = found.name_len

    @property
    def kind(self) -> str:
        """The update's kind, `"message"` for instance (Bot API, "Update"); "unknown" if it names none."""
        if self._kind or self._name_at < 0:
            return KINDS[self._kind]
        name = self.raw[self._name_at : self._name_at + self._name_len].decode("utf-8", "replace")
        return json.loads(f'"{name}"')  # it was valid in the body, escapes and all

    @property
    def kind_index(self) -> int:
        """The kind's place in `KINDS`, 0 for one that is not in it."""
        return self._kind

    @property
    def chat_id(self) -> int | None:
        """The chat's id; of a callback query, its message's chat. None where there is no chat."""
        return self._chat_id if self._has_chat else None

    @property
    def user_id(self) -> int | None:
        """The id of the user who caused the update, None where it names none."""
        return self._user_id if self._has_user else None

    @property
    def lane(self) -> tuple[int, int]:
        """What keeps its order: the bot and the chat, or the user where there is no chat, or 0."""
        return self.bot_id, self._chat_id if self._has_chat else self._user_id if self._has_user else 0
