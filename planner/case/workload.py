"""The exact reference call that a plan is measured against."""

from typing import Literal

from planner.case.noun import Noun, Scalar

Guidance = Literal["none", "embedded", "batched", "sequential"]


class Workload(Noun):
    """The keyword arguments of the reference call, its batch size, dtype and prompt set.

    `call` holds diffusers' own argument names without the prompt (height, width,
    num_inference_steps, true_cfg_scale, negative_prompt, max_sequence_length, …).
    `guidance` says how the pipeline computes the unconditional branch: in a second forward
    (sequential), in the same batch (batched), as an embedding, or not at all.
    `prompts` is the sha256 of the prompt set.
    """

    call: dict[str, Scalar]
    guidance: Guidance = "none"
    batch_size: int = 1
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    prompts: str = ""

    @property
    def steps(self) -> int:
        """Return the number of denoising steps of the reference call."""
        steps = self.call.get("num_inference_steps")
        return steps if isinstance(steps, int) else 50

    @property
    def forwards_per_step(self) -> int:
        """Return how many times the denoiser is called at one step."""
        return 2 if self.guidance == "sequential" else 1

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of an image in pixels; 0 where the call does not say."""
        sides = (self.call.get(name) for name in ("height", "width"))
        height, width = (side if isinstance(side, int) else 0 for side in sides)
        return height, width

    @property
    def images(self) -> int:
        """Return how many images one call draws."""
        each = self.call.get("num_images_per_prompt")
        return self.batch_size * (each if isinstance(each, int) else 1)
