"""Batch shapes of the two kinds of request."""

from __future__ import annotations

from wpray.models.batch_parts import BatchShape
from wpray.policies.batch_shapes import RequestKind

# A plan streams the VLM's weights 62 times, which in bfloat16 takes hardly longer for 32 rows than for one; arithmetic
# limits float32 earlier. A segment's passes are short, so padded rows cost time.
PLAN = RequestKind((1, 4, 8, 16, 32, 64, 128), {"bfloat16": BatchShape((4,), 32), "float32": BatchShape((2,), 8)})
SEGMENT = RequestKind(
    (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192),
    {"bfloat16": BatchShape((4,), 8), "float32": BatchShape((2,), 4)},
)
