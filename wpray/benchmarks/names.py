"""Names of suites as people write them."""

from __future__ import annotations

import re


def normalized(name: str) -> str:
    """Return `name` in lower case, with underscores for the hyphens and spaces between words."""
    return re.sub(r"(?<=\w)[\s-]+(?=\w)", "_", name.strip()).lower()


def is_or_varies(name: str, base: str) -> bool:
    """Return True if `name` is `base`, or begins with it and another word follows."""
    return name == base or name.startswith(f"{base}_")
