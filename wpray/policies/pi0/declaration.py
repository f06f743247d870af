"""All that is read of pi0 before it is loaded. Nothing here imports torch or Transformers at the top."""

from __future__ import annotations

from wpray.policies.pi0.doctor import checks as doctor_checks
from wpray.policies.pi0.spec import Settings, spec_of

__all__ = ["Settings", "doctor_checks", "spec_of"]
