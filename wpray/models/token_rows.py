"""Embeddings of prompts. A whole table takes a GPU 1 GB, of which the prompts of a suite use a few hundred rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wpray.models.stored_table import Table, TableAdapter

_CAPACITY = 8192  # rows on the device


class TokenRows:
    """The rows that prompts ask for, on the device; the table is elsewhere.

    `rows` (capacity, width) stays where it is: a captured graph may read it.
    """

    def __init__(self, table: Tensor | Table, device: torch.device, always: Sequence[int] = ()) -> None:
        """`table` (vocabulary, width); embeddings are its rows times the root of the width. `always`: ids to keep."""
        self._table = table
        self._scale = torch.tensor(table.shape[1] ** 0.5, dtype=table.dtype)
        self.rows = torch.zeros((min(_CAPACITY, len(table)), table.shape[1]), dtype=table.dtype, device=device)
        self._places: dict[int, int] = {}  # of ids in `rows`
        self._always = len(set(always))
        self.places([always])

    def embedded(self, ids: Sequence[int]) -> Tensor:
        """(N, width) on the device."""
        return (self._take(ids) * self._scale).to(self.rows.device)

    def scoring(self, ids: Sequence[int]) -> tuple[Tensor, TableAdapter | None]:
        """Return what scores these ids on the device: rows (N, width) float32, not scaled, and an adapter's part."""
        device = self.rows.device
        if isinstance(self._table, Tensor):
            return self._take(ids).float().to(device), None
        rows, adapter = self._table.scoring(ids)
        return rows.float().to(device), None if adapter is None else adapter.to(device)

    def places(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Where in `rows` each token's embedding is, which is put there if it is not yet.

        Raises ValueError for more different tokens than there is room for, or what the table raises.
        """
        wanted = {token for prompt in prompts for token in prompt}
        new = sorted(wanted - self._places.keys())
        if new:
            self._put(new if len(self._places) + len(new) <= len(self.rows) else self._make_room(wanted))
        return [[self._places[token] for token in prompt] for prompt in prompts]

    def _make_room(self, wanted: set[int]) -> list[int]:
        """Forgets all that are not always kept; returns the wanted ones that are missing now."""
        self._places = dict(list(self._places.items())[: self._always])
        missing = sorted(wanted - self._places.keys())
        if len(self._places) + len(missing) > len(self.rows):
            raise ValueError(f"prompts of a batch have {len(missing)} different tokens; {len(self.rows)} are the most")
        return missing

    def _put(self, ids: list[int]) -> None:
        first = len(self._places)
        self.rows[first : first + len(ids)] = self.embedded(ids)
        self._places |= {token: first + place for place, token in enumerate(ids)}

    def _take(self, ids: Sequence[int]) -> Tensor:
        if isinstance(self._table, Tensor):
            return self._table[list(ids)].cpu()
        return self._table.take(ids)
