"""The arguments of a pipeline call: batch size, and defaults under what is given."""

import numpy as np

from planner.run.calls import batch_of, merged
from tests.tiny import CALL


def test_the_number_of_images_counts_prompts_and_copies() -> None:
    assert batch_of({"prompt": ["a", "b"], "num_images_per_prompt": 3}) == 6
    assert batch_of({"prompt": "a"}) == batch_of({}) == 1
    assert batch_of({"prompt_embeds": np.zeros((4, 2, 2))}) == 4


def test_given_arguments_win_over_defaults() -> None:
    assert merged(CALL, {"height": 32})["height"] == 32
    assert "negative_prompt" not in merged(CALL, {"negative_prompt_embeds": 1})
