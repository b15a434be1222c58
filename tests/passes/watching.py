"""What is watched from outside a denoiser: what its block stack adds."""

from typing import Any, Self

import torch


class Watched:
    """Hooks of torch's own, which leave with the block."""

    _hooks: list[Any]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


class Added(Watched):
    """Keeps, per forward of a tiny Flux, what the block stack added to the image tokens."""

    def __init__(self, pipe: Any) -> None:
        self.added: list[torch.Tensor] = []
        denoiser = pipe.transformer
        self._hooks = [
            denoiser.x_embedder.register_forward_hook(self._before),
            denoiser.norm_out.register_forward_pre_hook(self._after),
        ]

    def _before(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self._input = output.clone()

    def _after(self, module: Any, args: Any) -> None:
        self.added.append(args[0] - self._input)

    @property
    def branches(self) -> dict[str, list[torch.Tensor]]:
        """By branch, step by step."""
        return {"cond": self.added[0::2], "uncond": self.added[1::2]}
