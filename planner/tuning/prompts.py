"""Divides prompts into those the search may see and those kept for the certificate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from planner.case.prompts import Prompt
from planner.errors import InvalidFile, UsageError
from planner.tuning.request import CERTIFY_PROMPTS, SEARCH_PROMPTS, Split

_LONGEST = 1 << 20
"""Bytes that a prompts file may have."""


def read_prompts(path: Path) -> list[str]:
    """Return the distinct lines of a prompts file, without empty ones and # comments.

    Raises `InvalidFile` when it cannot be read as UTF-8 text, is too large, or holds no prompt.
    """
    try:
        if path.stat().st_size > _LONGEST:
            raise InvalidFile(f"prompts file {path} is larger than 1 MiB", value=str(path),
                              way_out="keep one prompt a line, a few hundred at most")  # fmt: skip
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(
            f"cannot read prompts file {path} ({error})", value=str(path),
            way_out="give a UTF-8 text file with one prompt a line",
        ) from error  # fmt: skip
    texts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not texts:
        raise InvalidFile(f"prompts file {path} holds no prompt", value=str(path),
                          way_out="write one prompt a line")  # fmt: skip
    return list(dict.fromkeys(texts))


def split_file(texts: Sequence[str], seed: int, *, certify: bool, batch: int = 1) -> Split:
    """Shuffle one list by seed and divide it.

    Raises `UsageError` that says how many prompts are needed when there are too few.
    """
    unseen = certify * unseen_needed(batch)
    needed = SEARCH_PROMPTS + unseen
    if len(texts) < needed:
        what = "search and certify" if certify else "search"
        hint = ", or give --no-certify" if certify else ""
        raise UsageError(
            f"{len(texts)} distinct prompts are too few to {what}",
            value=len(texts),
            way_out=f"give at least {needed} ({SEARCH_PROMPTS} for the search"
            + (f", {unseen} unseen for the certificate)" if certify else ")")
            + hint,
        )
    order = list(texts)
    random.Random(seed).shuffle(order)
    return split_lists(order[:SEARCH_PROMPTS], order[SEARCH_PROMPTS:], seed, batch=batch)


def split_lists(
    search: Sequence[str], unseen: Sequence[str], seed: int, *, batch: int = 1
) -> Split:
    """Make a split from two lists that are kept apart already; latents' seeds follow `seed`.

    Both are cut to whole batches, so that every measured call has the workload's batch size.
    Where there are more unseen texts than one certificate needs, another seed takes others.
    """
    count = unseen_needed(batch)
    skip = seed * count % max(1, len(unseen)) if len(unseen) > count else 0
    unseen = [*unseen[skip:], *unseen[:skip]]
    first = [Prompt(text=text, seed=_latents(seed, i)) for i, text in enumerate(search)]
    later = [Prompt(text=text, seed=_latents(seed, 1000 + i)) for i, text in enumerate(unseen)]
    return Split(
        search=tuple(_whole(first[:SEARCH_PROMPTS], batch)),
        certify=tuple(_whole(later[:count], batch)),
    )


def unseen_needed(batch: int) -> int:
    """Return how many unseen prompts a certificate needs: enough images, and ten calls at least."""
    return max(CERTIFY_PROMPTS, 10 * batch)


def _latents(seed: int, index: int) -> int:
    return seed * 100_003 + index


def _whole(prompts: list[Prompt], batch: int) -> list[Prompt]:
    """Fill the last batch with earlier texts under new seeds."""
    short = -len(prompts) % batch
    again = [
        Prompt(text=p.text, seed=p.seed + 500_000) for p in (prompts * batch)[:short]
    ]  # fmt: skip
    return prompts + again
