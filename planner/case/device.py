"""Where the pipeline runs: what a latency holds for."""

from typing import Literal

from planner.case.noun import Noun


class Device(Noun):
    """A processor with its memory, driver and the versions of the libraries that drive it.

    `capability` is CUDA's compute capability; `features` are instruction sets such as avx2;
    `memory_bytes` is what the device has in all.
    """

    kind: Literal["cpu", "cuda", "fake"]
    name: str
    capability: tuple[int, int] | None = None
    memory_bytes: int
    driver: str | None = None
    threads: int = 1
    features: tuple[str, ...] = ()
    libraries: dict[str, str] = {}

    @property
    def slug(self) -> str:
        """Return the folder name for this kind of device, such as cpu or h100."""
        if self.kind == "cpu":
            return "cpu"
        words = "".join(c if c.isalnum() else " " for c in self.name.lower()).split()
        return "-".join(word for word in words if word not in {"nvidia", "geforce"})
