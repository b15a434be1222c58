"""Prompts with their seeds, and the split made before the first trial."""

from collections.abc import Sequence

from planner.case.noun import Noun, digest


class Prompt(Noun):
    """A text and the seed of its initial latents; `id` names its image files."""

    text: str
    seed: int

    @property
    def id(self) -> str:
        """Return twelve hexadecimal digits that identify text and seed."""
        return self.digest()[:12]


class Sample(Noun):
    """One steady pipeline call: its seconds, and the LPIPS of each image to its reference.

    `role` says what it was for: baseline-1, baseline-2, certify-baseline or certify:<digest>.
    `prompts` are the ids of the batch; `lpips` is empty for reference images themselves;
    `memory_bytes` is the peak memory seen so far with this plan on; `statistics` what passes saw.
    """

    role: str = ""
    prompts: tuple[str, ...]
    seconds: float
    lpips: tuple[float, ...] = ()
    memory_bytes: int = 0
    statistics: dict[str, dict[str, str | int | float | bool | None]] = {}


def by_call(prompts: Sequence[Prompt], size: int) -> list[tuple[Prompt, ...]]:
    """Return the prompts of each pipeline call, `size` a call; the last may be short."""
    return [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]


def hash_prompts(prompts: Sequence[Prompt]) -> str:
    """Return the sha256 of a list of prompts, order included."""
    return digest([prompt.model_dump() for prompt in prompts])
