"""The base of every noun: frozen, strict about unknown keys, hashable by content."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

Scalar = str | int | float | bool | None


class Noun(BaseModel):
    """A frozen value whose identity is its content."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def digest(self) -> str:
        """Return the sha256 of the canonical JSON of this value, in hexadecimal."""
        return digest(self.model_dump(mode="json"))


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
