"""Union-find over channels: every index of a prunable axis is a number, and numbers that go together share a root."""

from __future__ import annotations

import numpy as np


class Channels:
    """Numbers of channels. A pinned one stays, and so does all that is joined with it; the first reason is kept."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> np.ndarray:
        """`count` new channels: int64 [count]."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, channel: int) -> int:
        """What stands for all that `channel` is joined with."""
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def roots(self) -> np.ndarray:
        """The root of every channel: int64 [channels]."""
        return np.array([self.root(k) for k in range(len(self._parent))], dtype=np.int64)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Channels of two vectors of one length go together, index by index."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            ra, rb = self.root(a), self.root(b)
            if ra != rb:
                self._parent[rb] = ra
                reason = self._pinned.pop(rb, None)
                if reason is not None:
                    self._pinned.setdefault(ra, reason)

    def pin(self, channels: np.ndarray, reason: str) -> None:
        """These channels stay."""
        for channel in channels.tolist():
            self._pinned.setdefault(self.root(channel), reason)

    def pinned(self, channel: int) -> str | None:
        """Why a channel stays; None where it may go."""
        return self._pinned.get(self.root(channel))
