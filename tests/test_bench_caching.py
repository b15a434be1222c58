"""The comparison of caches as a whole, small: a tiny Flux, few settings, every stage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.case.prompts import Prompt
from planner.cli.main import run
from planner.errors import Interrupted, InvalidFile, UsageError
from planner.reporting.caching_page import page, write_report
from planner.run.pipeline import PipelineSource
from planner.trials.ledger import Ledger
from planner.tuning.bench.cache_dit import version
from planner.tuning.bench.caching import Question, compare, methods_for
from planner.tuning.bench.document import Comparison, Row, read_comparison
from planner.tuning.bench.method import Method
from planner.tuning.bench.rig import Rig
from planner.tuning.bench.scale import Scale
from planner.tuning.bench.stages import INERT
from planner.tuning.bench.watch import live_bytes, portrait
from tests.tiny import tiny_flux, tiny_workload

SOURCE = PipelineSource(model="tests.test_bench_caching:tiniest_flux", device="cpu")
STEPS = 10
PROMPTS = [Prompt(text=f"a {colour} {shape}", seed=seed) for seed, (colour, shape) in enumerate(
    (colour, shape) for colour in ("red", "blue", "green") for shape in ("circle", "square"))]
SMALL = Scale(
    levels=(0.002,), points=2, prompts=1, learning=1, refined=1, refined_prompts=2,
    refined_methods=1, finalists=1, attempts=2, certified=3, early=2, rounds=2, every=4.0,
    busy=1e9,
)  # fmt: skip
METHODS = ("steps", "step_mask (order 1)", "diffusers TaylorSeer lite", "diffusers SeaCache",
           *(("cache-dit DBCache F8B0",) if version() else ()))  # fmt: skip


def tiniest_flux() -> Any:
    """Return a pipeline with one block of each kind."""
    return tiny_flux(layers=1, single_layers=1)


class Said:
    """Keeps what a run says; interrupts it at the n-th move of the bar."""

    def __init__(self, until: int | None = None) -> None:
        self.lines: list[str] = []
        self._left = until

    def say(self, line: str) -> None:
        self.lines.append(line)

    def tick(self, phase: str, done: float, of: float, incumbent: str) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt


def question(out: Path) -> Question:
    return Question(
        source=SOURCE, workload=tiny_workload(num_inference_steps=STEPS), scale=SMALL, out=out,
        search=tuple(PROMPTS[:3]), unseen=tuple(PROMPTS[3:]), only=METHODS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def said() -> Said:
    return Said()


@pytest.fixture(scope="module")
def found(folder: Path, said: Said) -> Comparison:
    """A comparison that was interrupted in its grid, gone on with, and written."""
    stopped = Said(until=len(METHODS) + 1)
    with pytest.raises(Interrupted) as caught:
        compare(question(folder), stopped)
    assert caught.value.exit_code == 7 and "--resume" in caught.value.way_out
    document = compare(question(folder), said, resume=True)
    write_report(document, folder)
    return document


def row(found: Comparison, name: str) -> Row:
    return next(one for one in found.methods if one.method == name)


def test_both_sides_hold_and_are_timed_against_each_other(found: Comparison) -> None:
    (level,) = found.levels
    assert level.ours is not None and level.peer is not None and found.certified
    assert level.ours.side == "ours" and level.peer.side == "peer"
    assert level.rounds == SMALL.rounds and level.ratio is not None and level.ratio > 0
    assert level.ratio_interval is None, "two rounds give no interval"
    for entry in level.standings:
        assert entry.lpips.upper is not None and entry.lpips.upper <= level.lpips
    sides = [entry.side for entry in level.standings]
    assert sides == sorted(sides, key=["ours", "peer", "steps"].index)
    assert level.ours.recipe["plan"]["passes"][0]["name"] == "step_mask"
    ((mask,),) = level.ours.recipe["learned"]["step_mask"]["masks"].values()
    assert len(mask) == STEPS, "the recipe keeps the one mask that it needs"


def test_what_cannot_be_had_here_is_kept_with_the_reason(found: Comparison) -> None:
    assert row(found, "diffusers SeaCache").left_out == INERT
    if version() is not None:
        reason = row(found, "cache-dit DBCache F8B0").left_out
        assert reason is not None and "must be less than the number of transformer blocks" in reason
    assert row(found, "step_mask (order 1)").left_out is None


def test_a_method_is_described_by_its_curve_its_steps_and_its_bytes(found: Comparison) -> None:
    lite, fewer = row(found, "diffusers TaylorSeer lite"), row(found, "steps")
    assert lite.default is not None and lite.default.value == 5
    assert [one.value for one in lite.curve] == sorted(one.value for one in lite.curve)  # type: ignore[type-var]
    assert lite.at_default is not None and set(lite.at_default.shares) == {"cond", "uncond"}
    assert lite.at_default.shares["cond"] == (1, 1, 1, 0, 1, 0, 0, 0, 0, 1)
    assert lite.at_default.computed == {"cond": 5, "uncond": 5}
    assert lite.at_default.held.value > 0
    assert fewer.at_default is not None and fewer.at_default.held.value == 0


def test_the_mask_stands_beside_every_other_setting_at_as_many_forwards(
    found: Comparison, folder: Path
) -> None:
    others = {one.method for one in found.equal}
    assert {"steps", "diffusers TaylorSeer lite"} <= others <= set(METHODS)
    for one in found.equal:
        assert one.mask.startswith("step_mask (order 1), share ")
        assert one.mask_computed <= one.computed and one.mask_computed == round(one.mask_computed)
        assert 1 <= one.prompts <= SMALL.refined_prompts
        assert one.lpips <= max(SMALL.levels)
    text = (folder / "reports" / "caching.md").read_text(encoding="utf-8")
    nearer = sum(one.mask_lpips <= one.lpips for one in found.equal)
    assert f"The mask is nearer in {nearer} of {len(found.equal)} pairs" in text


def test_nothing_is_measured_twice_and_every_call_is_a_line(
    found: Comparison, folder: Path, said: Said
) -> None:
    ledger = Ledger.read(folder / ".planner" / "bench" / "caching" / "ledger.jsonl")
    calls = [body for body in ledger.bodies("sample") if body["method"] != "untouched"]
    keys = [(c["purpose"], c["method"], c["value"], c["prompt"]) for c in calls]
    assert len(keys) == len(set(keys)) and {c["run"] for c in calls} == {1, 2}
    lines = len(ledger)
    again = compare(question(folder), Said(), resume=True)
    later = Ledger.read(ledger.path)
    assert again.levels == found.levels
    assert [b for b in later.bodies("sample") if b["run"] == 3 and b["method"] != "untouched"] == []
    assert len(later) - lines <= 3, "an untouched call, and that the run ended"
    assert any("minutes" in line for line in said.lines), "the estimate comes first"


def test_a_comparison_that_lies_there_needs_a_word(found: Comparison, folder: Path) -> None:
    with pytest.raises(UsageError, match="--resume"):
        compare(question(folder), Said())
    other = Question(**{**vars(question(folder)), "scale": SMALL.model_copy(update={"rounds": 3})})
    with pytest.raises(UsageError, match="another one"):
        compare(other, Said(), resume=True)


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    rig = Rig(SOURCE, tiny_workload(), tmp_path)
    with pytest.raises(UsageError, match="no method is called 'x'"):
        methods_for(rig, ("x",), Said())


def test_the_page_names_every_method_and_the_pictures_are_there(
    found: Comparison, folder: Path
) -> None:
    text = (folder / "reports" / "caching.md").read_text()
    assert text == page(found)
    assert all(method in text for method in METHODS) and INERT in text
    for name in ("curves", "steps"):
        assert (folder / "reports" / f"caching-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert read_comparison(folder / "reports" / "caching.json") == found


def test_a_replay_plays_the_recorded_settings_and_certifies_nothing(
    found: Comparison, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "caching", "--quick", "--json", "--out", str(folder)]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "nothing is certified" in err
    assert document["quick"] and not document["certified"]
    (level,), (before,) = document["levels"], found.levels
    assert set(level) >= {"lpips", "ours", "peer", "ratio", "ratio_interval"}
    for side, recorded in (("ours", before.ours), ("peer", before.peer)):
        assert recorded is not None and level[side]["setting"] == recorded.setting
        assert level[side]["lpips"]["upper"] is None and level[side]["seconds"]["unit"] == "s"
        # The same images as in the certificate: each prompt's distance is the same again.
        assert level[side]["lpips"]["value"] == pytest.approx(recorded.lpips.value, abs=1e-6)
    assert level["rounds"] == 3


def test_a_replay_needs_a_recorded_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "caching", "--quick", "--out", str(tmp_path)]
    assert run(arguments) == 2
    assert "run planner bench caching without --quick" in capsys.readouterr().err
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "caching.json").write_text("{}")
    with pytest.raises(InvalidFile, match="no comparison"):
        read_comparison(tmp_path / "reports" / "caching.json")
    assert run(arguments) == 6


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield Rig(SOURCE, tiny_workload(num_inference_steps=STEPS), tmp_path_factory.mktemp("rig"))


@pytest.fixture(scope="module")
def methods(rig: Rig) -> dict[str, Method]:
    return {method.name: method for method in methods_for(rig, (), Said())[0]}


PEERS = ["diffusers FirstBlockCache", "diffusers MagCache", "diffusers TaylorSeer",
         "diffusers TaylorSeer lite", "diffusers SeaCache", "diffusers PyramidAttentionBroadcast",
         "diffusers FasterCache", "cache-dit DBCache F1B0 W4 TaylorSeer",
         "cache-dit steps_mask F1B0"]  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_leaves_nothing_on_the_pipeline(
    name: str, rig: Rig, methods: dict[str, Method]
) -> None:
    if name.startswith("cache-dit"):
        pytest.importorskip("cache_dit")
    method, prompt = methods[name], PROMPTS[0]
    rig.untouched(prompt)  # the first call of a pipeline leaves things of its own
    seen: list[Any] = []
    for _ in range(2):
        modules = list(rig.pipeline.transformer.named_modules())
        state = [sorted(vars(module)) for _, module in modules]
        seen.append((type(rig.pipeline), modules, state, sorted(vars(rig.pipeline))))
        pixels = rig.untouched(prompt)[1]
        seen.append(pixels)
        if len(seen) == 2:
            learned = method.learn(rig, (prompt,)) if method.learn else {}
            with method.on(rig, method.default, learned) as arguments:
                rig.call(prompt, arguments)
    assert seen[0] == seen[2]
    assert np.array_equal(seen[1], seen[3])


def test_a_portrait_sees_the_steps_that_a_mask_computes(
    rig: Rig, methods: dict[str, Method]
) -> None:
    method = methods["step_mask (order 1)"]
    assert method.learn is not None
    learned = method.learn(rig, (PROMPTS[1],))
    recipe = method.recipe(0.4, learned)
    ((mask,),) = recipe["learned"]["step_mask"]["masks"].values()
    with method.on(rig, 0.4, learned) as arguments:
        idle = live_bytes()
        seen = portrait(rig, PROMPTS[0], arguments)
    assert seen.shares == {branch: tuple(map(float, mask)) for branch in ("cond", "uncond")}
    assert seen.live > idle
