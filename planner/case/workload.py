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
