"""What latents picture, told from what real denoisers are given."""

from typing import Any

import pytest
import torch

from planner.errors import UsageError
from planner.hooks.grids import channels_of, pictured
from tests.test_families import denoiser


def tokens(batch: int, count: int, channels: int = 3) -> torch.Tensor:
    return torch.arange(batch * count * channels, dtype=torch.float32).reshape(
        batch, count, channels
    )


def grid(found: torch.Tensor) -> torch.Tensor:
    """Return a picture as batch × tokens × channels again."""
    return found.flatten(2).mT


def flux_ids(rows: int, columns: int, first: int = 0, start: int = 0) -> torch.Tensor:
    """Return ids as FluxPipeline makes them: 0, row, column."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 0] = first
    ids[..., 1] += start + torch.arange(rows)[:, None]
    ids[..., 2] += start + torch.arange(columns)[None, :]
    return ids.reshape(-1, 3)


@pytest.mark.parametrize("batched", [False, True])
def test_flux_tokens_lie_as_their_ids_say(batched: bool) -> None:
    latents, ids = tokens(2, 6), flux_ids(2, 3)
    kwargs = {"hidden_states": latents, "img_ids": ids[None] if batched else ids}
    (found,) = pictured((), kwargs)
    assert found.shape == (2, 3, 1, 2, 3)
    assert torch.equal(grid(found), latents)
    assert torch.equal(found[0, :, 0, 1, 2], latents[0, 5])


def test_the_pipelines_own_ids_fit_its_own_latents() -> None:
    from diffusers import FluxPipeline

    latents = torch.arange(2 * 4 * 6 * 8, dtype=torch.float32).reshape(2, 4, 6, 8)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    ids = FluxPipeline._prepare_latent_image_ids(2, 3, 4, torch.device("cpu"), torch.float32)
    (found,) = pictured((), {"hidden_states": packed, "img_ids": ids})
    assert found.shape == (2, 16, 1, 3, 4)
    patches = latents.reshape(2, 4, 3, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 16, 3, 4)
    assert torch.equal(found[:, :, 0], patches)


def test_ids_that_do_not_begin_at_nought_count_from_their_least() -> None:
    latents = tokens(1, 6)
    (found,) = pictured((), {"hidden_states": latents, "img_ids": flux_ids(2, 3, 1, 512)})
    assert found.shape == (1, 3, 1, 2, 3) and torch.equal(grid(found), latents)


def test_a_conditioning_image_behind_the_latents_is_no_part_of_the_picture() -> None:
    ids = torch.cat([flux_ids(2, 3), flux_ids(4, 4, first=1)])
    latents = tokens(1, 6 + 16)
    (found,) = pictured((), {"hidden_states": latents, "img_ids": ids})
    assert found.shape == (1, 3, 1, 2, 3) and torch.equal(grid(found), latents[:, :6])


@pytest.mark.parametrize("shapes", [[(1, 2, 3)], [[(1, 2, 3)]], [[(1, 2, 3), (1, 4, 4)]]])
def test_qwen_images_shapes_are_nested_and_the_first_is_the_latents(shapes: Any) -> None:
    latents = tokens(1, 6 + (16 if len(shapes[0]) == 2 else 0))
    (found,) = pictured((), {"hidden_states": latents, "img_shapes": shapes})
    assert found.shape == (1, 3, 1, 2, 3) and torch.equal(grid(found), latents[:, :6])


def test_ltx_names_frames_rows_and_columns() -> None:
    latents = tokens(2, 12)
    kwargs = {"hidden_states": latents, "num_frames": 2, "height": 2, "width": 3}
    (found,) = pictured((), kwargs)
    assert found.shape == (2, 3, 2, 2, 3) and torch.equal(grid(found), latents)


def test_pictures_videos_and_lists_of_videos_are_taken_as_they_are() -> None:
    image, video = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 3, 5, 6)
    (found,) = pictured((image, 0.5), {"encoder_hidden_states": image})
    assert torch.equal(found, image[:, :, None])
    (found,) = pictured((), {"sample": video})
    assert torch.equal(found, video)
    found = pictured((), {"x": [video[0], video[1, :, :, :4]]})
    assert [one.shape for one in found] == [(1, 4, 3, 5, 6), (1, 4, 3, 4, 6)]
    assert torch.equal(found[0][0], video[0])


def test_a_videos_channels_are_found_where_the_denoiser_has_them() -> None:
    video = torch.randn(2, 4, 3, 5, 6)
    for given in (video, video.movedim(1, 2), video.movedim(1, -1)):
        (found,) = pictured((), {"hidden_states": given}, channels=4)
        assert torch.equal(found, video)
    (found,) = pictured((), {"hidden_states": video}, channels=7)
    assert torch.equal(found, video), "nobody knows better"


def test_a_real_cogvideox_takes_frames_first() -> None:
    module, call = denoiser("CogVideoXTransformer3DModel")
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(pictured(args, kwargs, channels_of(module))),
        with_kwargs=True,
    )
    call()
    hook.remove()
    assert seen[0].shape == (1, 4, 2, 8, 8) and channels_of(torch.nn.Linear(1, 1)) == 0


def test_tokens_of_which_nothing_tells_are_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="nothing tells how 6 latent tokens lie") as caught:
        pictured((tokens(1, 6),), {"height": 2, "width": 3})
    assert caught.value.value == 6 and "does not look at frequencies" in caught.value.way_out
