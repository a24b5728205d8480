"""What was handled and is still on disk, until the next commits take it out."""

from __future__ import annotations

from fasthook.queues.batch import Done


class Settled:
    """`rows` in the order in which they were settled; `size`: bytes that they write."""

    def __init__(self) -> None:
        self.rows: list[Done] = []
        self.size = 0

    def take(self, most: int, size: int) -> list[Done]:
        """As many as go into one commit: so many, and so many bytes, but at least one.

        Those whose id is to be forgotten are all among them: Telegram was told to send these again, and what comes
        with the next updates must not be taken for known.
        """
        rows = self.rows
        if len(rows) <= most and self.size <= size:
            self.rows, self.size = [], 0
            return rows
        forgotten = [row for row in rows if row[2]]
        rows = [row for row in rows if not row[2]]
        count = total = 0
        for row in rows[:most]:
            total += row[5]
            if total > size and count:
                break
            count += 1
        self.rows, self.size = [], 0
        self.put_back(rows[count:])
        return forgotten + rows[:count]

    def put_back(self, rows: list[Done]) -> None:
        """These were not taken out: they are the first to be, next time."""
        self.rows = rows + self.rows
        self.size += sum(row[5] for row in rows)
