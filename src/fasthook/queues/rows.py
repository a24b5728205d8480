"""The numbers and names under which a journal keeps its updates."""

from __future__ import annotations

import struct

NUMBER = struct.Struct(">Q")  # in the order of arrival
ID = struct.Struct(">qQ")  # the bot and the update_id
HANDLED = NUMBER.size + ID.size  # bytes of a number and its id, in a row of `done`
