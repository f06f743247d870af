"""YAML loader that refuses repeated keys, and small files whose aliases mean a huge value."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_VALUES = 100_000  # counting the values of an alias each time it is used


def load_unique(text: str) -> Any:
    """Return the plain value of a YAML document.

    Raises yaml.YAMLError for a key that is given twice in a mapping, and for aliases that mean a huge or endless value.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in `node`; `known` holds those of nodes by id, 0 while they are being counted."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    elif known[id(node)] == 0:
        raise yaml.MarkedYAMLError(None, None, "an alias stands for what it is a part of", node.start_mark)
    if known[id(node)] > _MOST_VALUES:
        raise yaml.MarkedYAMLError(None, None, f"its aliases stand for over {_MOST_VALUES} values", node.start_mark)
    return known[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (key.tag, key.value) in seen:
            raise yaml.MarkedYAMLError(None, None, f"key {key.value} is given twice", key.start_mark)
        seen.add((key.tag, key.value))
