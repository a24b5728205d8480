"""Bodies and what is found in them: updates as nobody sends them, and what is not an update."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    update_id: int
    kind: str
    chat_id: int | None = None
    user_id: int | None = None


M = '"message":{"chat":{"id":7},"from":{"id":8}}'
MESSAGE = Found(5, "message", 7, 8)

UPDATES: dict[str, tuple[str | bytes, Found]] = {
    # update_id
    "nothing but an id": ('{"update_id":5}', Found(5, "unknown")),
    "id 0": ('{"update_id":0}', Found(0, "unknown")),
    "the largest id": ('{"update_id":9007199254740991}', Found(2**53 - 1, "unknown")),
    "ten digits in Telegram's order": ('{"update_id":9999999999,"message":{}}', Found(9999999999, "message")),
    "eleven digits in Telegram's order": ('{"update_id":10000000000,"message":{}}', Found(10000000000, "message")),
    "the official samples' line break": ('{\n"update_id":5,\n' + M + "}", MESSAGE),
    # order and white space
    "id last": ("{" + M + ',"update_id":5}', MESSAGE),
    "id in the middle": ('{"first":1,"update_id":5,' + M + "}", MESSAGE),
    "kind names between others": ('{"x":{"chat":{"id":1}},"update_id":5,' + M + ',"y":{}}', MESSAGE),
    "white space everywhere": (
        ' \t\r\n{ "update_id" :\t5 ,\r\n "message" : { "chat" : { "id" : 7 } , "from":{"id": 8 } } } \n',
        MESSAGE,
    ),
    "two line breaks": ('{"update_id":5,\n\n' + M + "}", MESSAGE),
    "chat's id last": ('{"update_id":5,"message":{"chat":{"type":"x","id":7},"from":{"is_bot":true,"id":8}}}', MESSAGE),
    "from before chat": ('{"update_id":5,"message":{"from":{"id":8},"chat":{"id":7}}}', MESSAGE),
    # escapes
    "escaped update_id": ('{"\\u0075pdate\\u005fid":5,' + M + "}", MESSAGE),
    "escaped kind": ('{"update_id":5,"m\\u0065ssage":{"chat":{"id":7},"from":{"id":8}}}', MESSAGE),
    "escapes in upper case": ('{"update_id":5,"\\u006D\\u0065ssage":{"chat":{"id":7},"from":{"id":8}}}', MESSAGE),
    "escaped chat, from and id": (
        '{"update_id":5,"message":{"ch\\u0061t":{"\\u0069d":7},"\\u0066rom":{"i\\u0064":8}}}',
        MESSAGE,
    ),
    "escapes that make another name": ('{"update_id":5,"m\\u0065ssage\\u0000":{}}', Found(5, "message\0")),
    "an unknown kind with escapes": ('{"update_id":5,"s\\u0074ory":{}}', Found(5, "story")),
    "an unknown kind with a line break": ('{"update_id":5,"st\\nory":{}}', Found(5, "st\nory")),
    # kinds
    "an unknown kind": ('{"update_id":5,"story":{"chat":{"id":7},"from":{"id":8}}}', Found(5, "story", 7, 8)),
    "two unknown kinds": ('{"update_id":5,"a":{"chat":{"id":7}},"b":{"chat":{"id":9}}}', Found(5, "a", 7)),
    "an unknown kind twice": ('{"update_id":5,"a":{"chat":{"id":7}},"a":{"chat":{"id":9}}}', Found(5, "a", 7)),
    "a known kind behind an unknown": ('{"update_id":5,"a":{"chat":{"id":9}},' + M + "}", MESSAGE),
    "two known kinds": ('{"update_id":5,' + M + ',"poll_answer":{"user":{"id":9}}}', MESSAGE),
    "a known kind twice": ('{"update_id":5,"message":{"chat":{"id":1},"from":{"id":2}},' + M + "}", MESSAGE),
    "a known kind twice, the last empty": ('{"update_id":5,' + M + ',"message":{}}', Found(5, "message")),
    "a known kind twice, the last null": ('{"update_id":5,' + M + ',"message":null}', Found(5, "message")),
    "a kind that is a string": ('{"update_id":5,"message":"chat"}', Found(5, "message")),
    "a kind that is an array": ('{"update_id":5,"message":[{"chat":{"id":7}}]}', Found(5, "message")),
    "a kind named unknown": ('{"update_id":5,"unknown":{"chat":{"id":7}}}', Found(5, "unknown", 7)),
    "a kind of no name": ('{"update_id":5,"":{"chat":{"id":7}}}', Found(5, "", 7)),
    "a kind that is not ASCII": ('{"update_id":5,"été":{}}', Found(5, "été")),
    "a kind that is not UTF-8": (b'{"update_id":5,"\xff":{}}', Found(5, "\ufffd")),
    "a prefix of a kind": ('{"update_id":5,"channel":{}}', Found(5, "channel")),
    "a kind and more": ('{"update_id":5,"messages":{}}', Found(5, "messages")),
    "a very long kind": ('{"update_id":5,"' + "m" * 99 + '":{}}', Found(5, "m" * 99)),
    # look-alikes
    "update_id in a text": ('{"update_id":5,"message":{"text":"\\"update_id\\":6,"}}', Found(5, "message")),
    "update_id deeper": ('{"update_id":5,"message":{"update_id":6,"chat":{"update_id":7}}}', Found(5, "message")),
    "update_id deeper and first": ('{"message":{"update_id":6},"update_id":5}', Found(5, "message")),
    "chat in a text": (
        '{"update_id":5,"message":{"text":"\\"chat\\":{\\"id\\":9}","chat":{"id":7}}}',
        Found(5, "message", 7),
    ),
    "a reply in another chat": (
        '{"update_id":5,"message":{"reply_to_message":{"chat":{"id":9},"from":{"id":9}},"chat":{"id":7},"from":{"id":8}}}',
        MESSAGE,
    ),
    "a reply in another chat, behind": (
        '{"update_id":5,"message":{"chat":{"id":7},"from":{"id":8},"reply_to_message":{"chat":{"id":9},"from":{"id":9}}}}',
        MESSAGE,
    ),
    "sender_chat is not chat": ('{"update_id":5,"message":{"sender_chat":{"id":9}}}', Found(5, "message")),
    "a chat in the chat": ('{"update_id":5,"message":{"chat":{"chat":{"id":9},"id":7}}}', Found(5, "message", 7)),
    "an id in the chat's photo": (
        '{"update_id":5,"message":{"chat":{"id":7,"photo":{"id":9}}}}',
        Found(5, "message", 7),
    ),
    "user is not from": ('{"update_id":5,"message":{"user":{"id":9}}}', Found(5, "message")),
    # names that come twice
    "two chats": ('{"update_id":5,"message":{"chat":{"id":9},"chat":{"id":7},"from":{"id":8}}}', MESSAGE),
    "two chats, the last without an id": ('{"update_id":5,"message":{"chat":{"id":9},"chat":{}}}', Found(5, "message")),
    "two chats, the last a number": ('{"update_id":5,"message":{"chat":{"id":9},"chat":9}}', Found(5, "message")),
    "two ids": ('{"update_id":5,"message":{"chat":{"id":9,"id":7},"from":{"id":9,"id":8}}}', MESSAGE),
    "two ids, the last a string": ('{"update_id":5,"message":{"chat":{"id":9,"id":"7"}}}', Found(5, "message")),
    # ids of chats and users
    "the largest chat id": (
        '{"update_id":5,"message":{"chat":{"id":999999999999999999}}}',
        Found(5, "message", 10**18 - 1),
    ),
    "nineteen digits": ('{"update_id":5,"message":{"chat":{"id":-1000000000000000000}}}', Found(5, "message")),
    "a chat id of -0": ('{"update_id":5,"message":{"chat":{"id":-0}}}', Found(5, "message", 0)),
    "a chat id with a fraction": (
        '{"update_id":5,"message":{"chat":{"id":7.0},"from":{"id":8}}}',
        Found(5, "message", None, 8),
    ),
    "a chat id with an exponent": ('{"update_id":5,"message":{"chat":{"id":7e0}}}', Found(5, "message")),
    "a chat id that is a string": (
        '{"update_id":5,"message":{"chat":{"id":"7"},"from":{"id":8}}}',
        Found(5, "message", None, 8),
    ),
    "a chat id that is an object": ('{"update_id":5,"message":{"chat":{"id":{"id":7}}}}', Found(5, "message")),
    "a chat id that is an array": ('{"update_id":5,"message":{"chat":{"id":[7]}}}', Found(5, "message")),
    "a chat that is an array": (
        '{"update_id":5,"message":{"chat":[{"id":7}],"from":{"id":8}}}',
        Found(5, "message", None, 8),
    ),
    # where chat and user stand in other kinds
    "a callback's chat": (
        '{"update_id":5,"callback_query":{"from":{"id":8},"message":{"chat":{"id":7},"from":{"id":9}}}}',
        Found(5, "callback_query", 7, 8),
    ),
    "a callback's own chat": ('{"update_id":5,"callback_query":{"chat":{"id":9}}}', Found(5, "callback_query")),
    "a callback from inline mode": (
        '{"update_id":5,"callback_query":{"from":{"id":8},"inline_message_id":"x"}}',
        Found(5, "callback_query", None, 8),
    ),
    "a callback with two messages": (
        '{"update_id":5,"callback_query":{"message":{"chat":{"id":9}},"message":{}}}',
        Found(5, "callback_query"),
    ),
    "a callback to a reply": (
        '{"update_id":5,"callback_query":{"message":{"reply_to_message":{"chat":{"id":9}},"chat":{"id":7}}}}',
        Found(5, "callback_query", 7),
    ),
    "a message's message": ('{"update_id":5,"message":{"message":{"chat":{"id":9}}}}', Found(5, "message")),
    "a reaction's user": (
        '{"update_id":5,"message_reaction":{"user":{"id":8},"from":{"id":9}}}',
        Found(5, "message_reaction", None, 8),
    ),
    "a poll answer's user": (
        '{"update_id":5,"poll_answer":{"from":{"id":9},"user":{"id":8}}}',
        Found(5, "poll_answer", None, 8),
    ),
    "a business connection's user": (
        '{"update_id":5,"business_connection":{"user":{"id":8},"user_chat_id":9}}',
        Found(5, "business_connection", None, 8),
    ),
    # what JSON allows
    "every kind of value": (
        '{"a":[true,false,null,0,-0,1.5,-1.5e+10,1E-2,0e0,"",{},[],[[]],{"b":[{}]}],"update_id":5}',
        Found(5, "a"),
    ),
    "every escape": (
        '{"update_id":5,"message":{"text":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00ff\\uD83D\\uDE00\\ud800"}}',
        Found(5, "message"),
    ),
    "DEL in a string": ('{"update_id":5,"message":{"text":"\x7f"}}', Found(5, "message")),
    "not UTF-8 in a string": (
        b'{"update_id":5,"message":{"text":"\xff\xc0\x80\xe2\x82","chat":{"id":7}}}',
        Found(5, "message", 7),
    ),
    "a number of 5,000 digits": ('{"update_id":5,"message":{"a":' + "9" * 5000 + "}}", Found(5, "message")),
    "512 arrays deep": ('{"update_id":5,"a":' + "[" * 511 + "]" * 511 + "}", Found(5, "a")),
    "512 objects deep": ('{"update_id":5,"message":' + '{"a":' * 510 + "{}" + "}" * 510 + "}", Found(5, "message")),
}

NOT_UPDATES: dict[str, str | bytes] = {
    "nothing": "",
    "white space": " \n",
    "a number": "5",
    "a string": '"update_id"',
    "an array": '[{"update_id":5}]',
    "null": "null",
    "an empty object": "{}",
    "no id": "{" + M + "}",
    "an id deeper only": '{"message":{"update_id":5}}',
    "id -1": '{"update_id":-1}',
    "id -0": '{"update_id":-0}',
    "id 1.0": '{"update_id":1.0}',
    "id 1e2": '{"update_id":1e2}',
    "id of a string": '{"update_id":"5"}',
    "id true": '{"update_id":true}',
    "id null": '{"update_id":null}',
    "id an array": '{"update_id":[5]}',
    "id an object": '{"update_id":{"id":5}}',
    "id 2**53": '{"update_id":9007199254740992}',
    "id 2**64 + 5": '{"update_id":18446744073709551621}',
    "id of 30 digits": '{"update_id":' + "1" * 30 + "}",
    "id with a zero in front": '{"update_id":05,"message":{}}',
    "id with a plus": '{"update_id":+5}',
    "id twice": '{"update_id":5,"update_id":5}',
    "id twice, once escaped": '{"update_id":5,"message":{},"update\\u005fid":5}',
    "id twice, in Telegram's order": '{"update_id":5,\n' + M + ',"update_id":6}',
    "a byte order mark": b'\xef\xbb\xbf{"update_id":5}',
    "UTF-16": '{"update_id":5}'.encode("utf-16-le"),
    "a form": b"update_id=5",
    # RFC 8259
    "a comma at the end": '{"update_id":5,}',
    "a comma at the end, in Telegram's order": '{"update_id":5,\n"message":{},}',
    "a comma at the start": '{,"update_id":5}',
    "two commas": '{"update_id":5,,"a":1}',
    "a comma at the end of an array": '{"update_id":5,"a":[1,]}',
    "a comma in an empty array": '{"update_id":5,"a":[,]}',
    "no comma": '{"update_id":5 "a":1}',
    "no colon": '{"update_id" 5}',
    "two colons": '{"update_id"::5}',
    "no value": '{"update_id":5,"a":}',
    "no name": '{"update_id":5,:1}',
    "a name alone": '{"update_id":5,"a"}',
    "a name without quotes": '{"update_id":5,a:1}',
    "single quotes": "{'update_id':5}",
    "a comment": '{"update_id":5/**/}',
    "brackets crossed": '{"update_id":5,"a":[}]',
    "an array closed as an object": '{"update_id":5,"a":[1}}',
    "an object closed as an array": '{"update_id":5]',
    "one bracket too many": '{"update_id":5}}',
    "one bracket too few": '{"update_id":5,"a":{}',
    "something behind": '{"update_id":5}x',
    "another behind": '{"update_id":5}{"update_id":5}',
    "NUL behind": '{"update_id":5}\0',
    "NUL in front": '\0{"update_id":5}',
    "a vertical tab": '{\v"update_id":5}',
    "a no-break space": '{"update_id":\u00a05}',
    "NaN": '{"update_id":5,"a":NaN}',
    "Infinity": '{"update_id":5,"a":-Infinity}',
    "a bare minus": '{"update_id":5,"a":-}',
    "a zero in front": '{"update_id":5,"a":01}',
    "a zero in front of a negative": '{"update_id":5,"a":-01}',
    "a point at the end": '{"update_id":5,"a":1.}',
    "a point at the start": '{"update_id":5,"a":.5}',
    "an exponent without digits": '{"update_id":5,"a":1e}',
    "an exponent of a sign": '{"update_id":5,"a":1e+}',
    "hexadecimal": '{"update_id":5,"a":0x1}',
    "True": '{"update_id":5,"a":True}',
    "half of true": '{"update_id":5,"a":tr}',
    "null and more": '{"update_id":5,"a":null0}',
    "a control character in a string": '{"update_id":5,"a":"\x1f"}',
    "a line break in a string": '{"update_id":5,"a":"line\nline"}',
    "a tab in a name": '{"update_id":5,"a\t":1}',
    "NUL in a string": '{"update_id":5,"a":"0123456789abcdef\0"}',
    "an unknown escape": '{"update_id":5,"a":"\\x41"}',
    "an escape of three digits": '{"update_id":5,"a":"\\u041"}',
    "an escape that is not hexadecimal": '{"update_id":5,"a":"\\u00g0"}',
    "an escape with a sign": '{"update_id":5,"a":"\\u+041"}',
    "an escape with a low line": '{"update_id":5,"a":"\\u0_41"}',
    "an escaped quote at the end": '{"update_id":5,"a":"\\"}',
    "a broken escape in a name": '{"update_id":5,"\\q":1}',
    "a string without an end": '{"update_id":5,"a":"',
    "not UTF-8 outside strings": b'{"update_id":5,\xff"a":1}',
    "513 arrays deep": '{"update_id":5,"a":' + "[" * 512 + "]" * 512 + "}",
    "513 objects deep": '{"update_id":5,"message":' + '{"a":' * 511 + "{}" + "}" * 511 + "}",
    "100,000 arrays deep": '{"update_id":5,"a":' + "[" * 100_000,
    "100,000 objects deep": '{"a":' * 100_000,
}
