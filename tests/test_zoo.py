"""The world is seeded and keeps its promise, the trainer resumes, the shipped model loads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from planner.zoo import world
from planner.zoo.autoencoder import Crops, build
from planner.zoo.export import SHAPES, assemble, write
from planner.zoo.lessons import LayoutReader, Lessons, layout, thin
from planner.zoo.model import Denoiser, Size
from planner.zoo.patches import LATENT_CHANNELS, code, encode
from planner.zoo.tokenizers import (
    CLIP_LENGTH,
    TEXT_LENGTH,
    Words,
    clip_tokenizer,
    t5_tokenizer,
    words,
)
from planner.zoo.train import Recipe, Trainer, train_together

TINY = Size(heads=1, double=1, single=1, text=16)


def test_the_same_seed_draws_the_same_scene() -> None:
    first, again = world.scene("train", 7), world.scene("train", 7)
    assert first == again
    assert np.array_equal(first.image(), again.image())
    assert world.scene("train", 8) != first


def test_training_never_shows_a_held_out_combination() -> None:
    for seed in range(1500):
        scene = world.scene("train", seed)
        assert not any(world.held_out(*combo) for combo in scene.combinations), scene.caption
        for thing in scene.things:
            assert not world.held_out(thing.colour, thing.shape, world.region(thing.x, thing.y))


def test_certification_captions_never_occur_in_training() -> None:
    certify = set(world.captions("certify", 300))
    train = {world.scene("train", seed).caption for seed in range(3000)}
    assert not certify & train


def test_captions_leave_the_picture_open() -> None:
    pictures = [world.scene("train", seed, "one") for seed in range(400)]
    common, times = Counter(s.caption for s in pictures).most_common(1)[0]
    same = [s for s in pictures if s.caption == common]
    assert times > 1
    assert len({s.image().tobytes() for s in same}) == times
    assert len({s.things for s in same}) > 1


def test_every_caption_fits_the_text_lengths_with_one_token_a_word() -> None:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    for word in words():
        assert len(clip(word).input_ids) == 3 and len(t5(word).input_ids) == 2
    for caption in world.captions("train", 300) + world.captions("certify", 300):
        assert len(clip(caption).input_ids) <= CLIP_LENGTH
        assert len(t5(caption).input_ids) <= TEXT_LENGTH
        assert t5.unk_token_id not in t5(caption).input_ids


def test_a_tenth_of_the_captions_is_dropped() -> None:
    rng = np.random.default_rng(0)
    kept = [thin("a red circle on the left", rng) for _ in range(4000)]
    assert 0.08 < kept.count("") / 4000 < 0.13
    assert 0.75 < kept.count("a red circle on the left") / 4000 < 0.85


def _tiny_vae() -> object:
    torch.manual_seed(0)
    vae = build()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    return vae


def test_training_in_two_stretches_equals_one_stretch(tmp_path: Path) -> None:
    recipe = Recipe(steps=4, batch=2)
    whole = Trainer(recipe, tmp_path / "whole", TINY)
    whole.run()
    Trainer(recipe, tmp_path / "parts", TINY).run(until=2)
    resumed = Trainer(recipe, tmp_path / "parts", TINY)
    assert resumed.step == 2
    resumed.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_products_in_bfloat16_train_to_nearly_the_same_loss(tmp_path: Path) -> None:
    exact = Trainer(Recipe(steps=6, batch=2), tmp_path / "exact", TINY)
    rounded = Trainer(Recipe(steps=6, batch=2, bfloat16=True), tmp_path / "rounded", TINY)
    for trainer in (exact, rounded):
        trainer.run()
    assert rounded.loss.item() != exact.loss.item()
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert all(value.dtype == torch.float32 for value in rounded.model.state_dict().values()
               if value.is_floating_point())  # fmt: skip


def test_scenes_drawn_ahead_by_another_process_train_to_the_same_weights(tmp_path: Path) -> None:
    own = Trainer(Recipe(steps=2, batch=2, levels=2), tmp_path / "own", TINY)
    ahead = Trainer(Recipe(steps=2, batch=2, levels=2, drawers=1), tmp_path / "ahead", TINY)
    for trainer in (own, ahead):
        trainer.run()
    for name, value in own.model.state_dict().items():
        assert torch.equal(value, ahead.model.state_dict()[name]), name


def test_each_scene_of_a_lesson_is_learned_at_several_noise_levels() -> None:
    lesson = Lessons(3, 2, Words())[5]
    thrice = lesson.on(torch.device("cpu"), 3)
    assert thrice.clean.shape == (6, 64, 4 * LATENT_CHANNELS)
    assert torch.equal(thrice.clean[:2], thrice.clean[4:])
    assert torch.equal(thrice.t5, lesson.t5.repeat(3, 1))
    again = Lessons(3, 2, Words())[5]
    assert torch.equal(lesson.clean, again.clean) and torch.equal(lesson.layout, again.layout)
    assert not torch.equal(lesson.clean, Lessons(3, 2, Words())[6].clean)


def test_crops_show_what_their_latents_say() -> None:
    crops = Crops(seed=1, count=2)
    seen, latents = crops[4]
    assert seen.shape == (4, 3, 64, 64) and latents.shape == (4, LATENT_CHANNELS, 8, 8)
    assert torch.allclose(encode(seen, code()), latents, atol=1e-4)
    assert torch.equal(seen, crops[4][0])


def test_two_workers_take_the_step_that_one_takes_with_both_their_scenes(tmp_path: Path) -> None:
    train_together(Recipe(steps=2, batch=2, workers=2), tmp_path / "two", TINY)
    two = Trainer(Recipe(steps=2), tmp_path / "two", TINY)
    assert two.step == 2

    alone = Trainer(Recipe(steps=2, batch=2), tmp_path / "alone", TINY)
    shares = [Trainer(Recipe(steps=2, batch=2), tmp_path / "alone", TINY) for _ in range(2)]
    for step in range(2):
        for place, share in enumerate(shares):
            share.model.load_state_dict(alone.model.state_dict())
            share.reader.load_state_dict(alone.reader.state_dict())
            at = 2 * step + place
            loss = share.step_loss(share.lessons[at], at)
            share.optimizer.zero_grad()
            torch.autograd.backward(loss)
        for mine, *theirs in zip(*(t.learned for t in (alone, *shares)), strict=True):
            seen = [p.grad for p in theirs if p.grad is not None]
            mine.grad = torch.stack(seen).mean(0) if seen else None
        alone.descend()
    for name, value in alone.model.state_dict().items():
        assert torch.allclose(value, two.model.state_dict()[name], atol=1e-6), name


def test_a_layout_says_what_each_cell_of_the_picture_shows() -> None:
    scene = next(
        s for s in (world.scene("train", seed, "one") for seed in range(50))
        if len(s.things) == 1 and s.things[0].shape == "square"
    )  # fmt: skip
    thing = scene.things[0]
    seen = layout(scene.things).reshape(8, 8, 4, 4, 2).permute(0, 2, 1, 3, 4).reshape(32, 32, 2)
    y, x = int(thing.y // 4), int(thing.x // 4)
    assert seen[y, x].tolist() == [
        1 + world.SHAPES.index("square"), 1 + world.COLOURS.index(thing.colour)
    ]  # fmt: skip
    share = (seen[..., 0] > 0).float().mean().item()
    assert share == pytest.approx((1.6 * thing.radius / 128) ** 2, rel=0.35)


def test_a_reader_that_is_right_has_little_to_lose() -> None:
    reader = LayoutReader(8)
    wanted = layout(world.scene("train", 3).things)[None]
    torch.nn.init.zeros_(reader.name.weight)
    blind = reader.loss(torch.randn(1, 64, 8), wanted).item()
    assert blind > 2
    scores = torch.full((64, 16, 15), -20.0)
    scores.scatter_(-1, wanted[0, ..., :1], 20.0)
    scores.scatter_(-1, 7 + wanted[0, ..., 1:], 20.0)
    reader.norm, reader.name = torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
    assert reader.loss(scores.flatten(1)[None], wanted).item() < 1e-6


def test_a_saved_pipeline_is_a_start_for_more_training(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Denoiser(TINY)
    write(assemble(model, _tiny_vae(), shift=1.0), tmp_path / "pipeline")
    trainer = Trainer(Recipe(steps=1), tmp_path / "run", TINY, start=tmp_path / "pipeline")
    wanted = model.transformer.x_embedder.weight.float()
    assert torch.equal(trainer.model.transformer.x_embedder.weight, wanted)


def test_the_shipped_weights_are_small_and_stored_in_two_precisions() -> None:
    files = list(SHAPES.rglob("*.safetensors"))
    assert 0 < sum(file.stat().st_size for file in files) <= 60e6
    for part, kind in {
        "text_encoder": torch.float32,
        "text_encoder_2": torch.float32,
        "transformer": torch.float16,
        "vae": torch.float16,
    }.items():
        with safe_open(next((SHAPES / part).glob("*.safetensors")), "pt") as stored:
            assert {stored.get_tensor(name).dtype for name in stored.keys()} == {kind}  # noqa: SIM118


def test_shipped_prompts_keep_search_and_certification_apart() -> None:
    tune = (SHAPES / "prompts_tune.txt").read_text().splitlines()
    certify = (SHAPES / "prompts_certify.txt").read_text().splitlines()
    assert len(set(tune)) == len(tune) >= 24
    assert len(set(certify)) == len(certify) >= 96
    assert not set(tune) & set(certify)
    train = {world.scene("train", seed).caption for seed in range(1500)}
    assert not train & set(certify)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_plain_diffusers_loads_and_renders_the_shipped_model() -> None:
    from diffusers import DiffusionPipeline

    call = json.loads((SHAPES / "workload.json").read_text())
    pipe = DiffusionPipeline.from_pretrained(SHAPES)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call["num_inference_steps"] = 3
    image = pipe("a red circle", **call, generator=generator).images[0]
    assert image.size == (128, 128)
    assert np.asarray(image).std() > 5
