"""Embeddings of prompts. A whole table takes 1 GB of a GPU, but the prompts of a suite use a few hundred rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wpray.models.stored_table import Table, TableAdapter

_CAPACITY = 8192  # rows on the device


class TokenRows:
    """Rows on the device for the tokens of prompts; the table is elsewhere.

    `rows` (capacity, width) has a fixed address, because captured graphs read it.
    """

    def __init__(self, table: Tensor | Table, device: torch.device, always: Sequence[int] = ()) -> None:
        """Use rows of `table` (vocabulary, width) times the root of the width; ids in `always` are never removed."""
        self._table = table
        self._scale = torch.tensor(table.shape[1] ** 0.5, dtype=table.dtype)
        self.rows = torch.zeros((min(_CAPACITY, len(table)), table.shape[1]), dtype=table.dtype, device=device)
        self._places: dict[int, int] = {}  # of ids in `rows`
        self._always = len(set(always))
        self.places([always])

    def embedded(self, ids: Sequence[int]) -> Tensor:
        """Return embeddings (N, width) on the device."""
        return (self._take(ids) * self._scale).to(self.rows.device)

    def scoring(self, ids: Sequence[int]) -> tuple[Tensor, TableAdapter | None]:
        """Return what scores these ids on the device: rows (N, width) float32, not scaled, and an adapter's part."""
        device = self.rows.device
        if isinstance(self._table, Tensor):
            return self._take(ids).float().to(device), None
        rows, adapter = self._table.scoring(ids)
        return rows.float().to(device), None if adapter is None else adapter.to(device)

    def places(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the index in `rows` of each token's embedding, after copying missing ones.

        Raise ValueError for more different tokens than fit, or what the table raises.
        """
        wanted = {token for prompt in prompts for token in prompt}
        new = sorted(wanted - self._places.keys())
        if new:
            self._put(new if len(self._places) + len(new) <= len(self.rows) else self._make_room(wanted))
        return [[self._places[token] for token in prompt] for prompt in prompts]

    def _make_room(self, wanted: set[int]) -> list[int]:
        """Remove all ids that are not always kept. Return the wanted ones that are now missing."""
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
