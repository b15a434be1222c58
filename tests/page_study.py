"""A study on disk with made-up figures: real records and small drawn images, no pipeline."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from planner.case.case import Case
from planner.case.device import Device
from planner.case.goal import Goal
from planner.case.model import Component, Model, Traits
from planner.case.outcome import Failed, Measured, Outcome
from planner.case.prompts import Prompt, Sample
from planner.case.workload import Workload
from planner.measure.images import save_png
from planner.plans.plan import Plan
from planner.policy.claim import Provenance
from planner.policy.file import PolicyFile
from planner.trials.ledger import Ledger
from planner.trials.trial import Trial
from planner.tuning.certify import Rounds, Verdict, alpha_each, bounds
from planner.tuning.choose import finalists
from planner.tuning.conclude import certificate, evidence
from planner.tuning.noise import Noise
from planner.tuning.request import Split

REFERENCE = 5.2
HOSTILE = '<script>alert("prompt")</script> & <img src=x onerror=alert(1)>'
EXCLUDED = {
    "int8_dynamic": "int8_dynamic needs a CPU with AVX2; this device has none (torch docs)",
    "compile_blocks": "compile_blocks pays off after more calls than asked <for> (measured)",
}
GOAL = Goal(budget_seconds=2.0, max_lpips=0.10, quality="balanced")


def case() -> Case:
    """Return a case like that of the embedded model."""
    parts = {name: Component(class_name=kind, config="c" * 64, weights="e" * 64)
             for name, kind in (("transformer", "FluxTransformer2DModel"),
                                ("vae", "AutoencoderKL"), ("text_encoder_2", "T5EncoderModel"))}
    traits = Traits(denoiser="transformer", denoiser_class="FluxTransformer2DModel", blocks=12,
                    branches=("cond", "uncond"), cacheable=True, skippable=True)  # fmt: skip
    device = Device(kind="cpu", name="Test CPU 2.1 GHz", memory_bytes=24 * 2**30, threads=2,
                    features=("avx2", "fma"), libraries={"torch": "2.14.1"})  # fmt: skip
    call: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 50,
                            "true_cfg_scale": 4.0, "negative_prompt": ""}  # fmt: skip
    return Case(
        model=Model(id="shapes", pipeline="FluxPipeline", components=parts, traits=traits),
        device=device, workload=Workload(call=call, guidance="sequential"),
    )


def split(hostile: bool = False) -> Split:
    """Return six search and 32 certification prompts, some of them an attack if asked for."""
    colours = ("red", "blue", "green", "yellow")
    texts = [f"a {colours[i % 4]} circle {i} on a striped ground" for i in range(38)]
    if hostile:
        texts[::3] = [HOSTILE] * len(texts[::3])
    made = [Prompt(text=text, seed=i) for i, text in enumerate(texts)]
    return Split(search=tuple(made[:6]), certify=tuple(made[6:]))


def plan(steps: int | None = None, tea: float | None = None,
         guidance: float | None = None) -> Plan:  # fmt: skip
    """Return a plan of up to three passes."""
    chosen: dict[str, dict[str, Any]] = {}
    if steps is not None:
        chosen["steps"] = {"num_inference_steps": steps}
    if guidance is not None:
        chosen["guidance_interval"] = {"stop": guidance}
    if tea is not None:
        chosen["tea_cache"] = {"threshold": tea}
    return Plan.of(chosen)


WINNER = plan(30, tea=0.2, guidance=0.8)
TRIED: tuple[tuple[Plan, float, float], ...] = (
    (plan(25), 0.51, 0.045), (plan(16), 0.34, 0.118), (plan(tea=0.15), 0.62, 0.021),
    (plan(guidance=0.8), 0.9, 0.012), (plan(25, tea=0.15), 0.36, 0.071),
    (plan(20, tea=0.3), 0.24, 0.171), (plan(30, tea=0.4), 0.31, 0.131), (WINNER, 0.335, 0.062),
    (plan(35, tea=0.6), 0.28, 0.24), (plan(28, guidance=0.5), 0.45, 0.06),
    (plan(40, tea=0.3, guidance=0.7), 0.36, 0.083), (plan(12), 0.26, 0.165),
)  # fmt: skip


class Fake:
    """Draws made-up but repeatable figures for one study, and writes them."""

    def __init__(self, folder: Path, *, hostile: bool = False, goal: Goal = GOAL) -> None:
        self.folder, self.goal, self.split = folder, goal, split(hostile)
        self.random = random.Random(7)
        self.trials: list[Trial] = []
        asked = {"goal": goal.model_dump(mode="json"), "split": self.split.model_dump(mode="json"),
                 "with_passes": [], "without_passes": [], "domains": {}, "sampler": "gp",
                 "seed": 0}  # fmt: skip
        self.ledger = Ledger.create(folder / "ledger.jsonl", {
            "case": case().model_dump(mode="json"), "request": asked,
            "command": "planner tune --budget 2s", "started": "2026-11-20T10:00:00+00:00",
            "versions": {"diffusers": "0.42.1"}, "excluded": EXCLUDED,
            "legal": ["steps", "guidance_interval", "tea_cache", "first_block_cache",
                      "prompt_embedding_cache"],
            "clashes": [["first_block_cache", "tea_cache", "both reuse steps (a paper)"]],
        })  # fmt: skip
        self.noise = Noise(
            reference_seconds=REFERENCE, spread=0.021, lpips=0.0003, lpips_p95=0.0006,
            memory_bytes=900 * 2**20, load_seconds=2.1, first_call_seconds=5.6,
            seconds=tuple(REFERENCE * (1 + 0.004 * i) for i in range(-6, 7)),
        )

    def baseline(self) -> None:
        """Write the noise floor and the reference images."""
        for role in ("baseline-1", "baseline-2"):
            for prompt in self.split.search:
                self.sample(role, prompt, 1.0, ())
        self.ledger.append("noise", self.noise.model_dump())

    def trial(self, of: Plan, ratio: float, lpips: float, origin: str = "sampler",
              prompts: int = 6) -> None:  # fmt: skip
        """Write one measured trial; what misses the budget by far is dropped on time."""
        noisy = [ratio * self.random.uniform(0.96, 1.05) for _ in range(prompts)]
        hard = (0.7, 1.2, 0.9, 1.5, 0.6, 1.1)  # some prompts change more than others
        far = [lpips * h * self.random.uniform(0.9, 1.1) for h in hard[:prompts]]
        slow = ratio * REFERENCE > 1.3 * (self.goal.budget_seconds or 1e9)
        if slow and origin != "bought":
            noisy, far = noisy[:1], []
        outcome = Measured(
            seconds=tuple(r * REFERENCE for r in noisy), ratios=tuple(noisy), lpips=tuple(far),
            memory_bytes=930 * 2**20, first_call_seconds=3.1, apply_seconds=0.4,
            statistics=self.statistics(of),
            stopped_early="at best 2.6 s, over the budget" if slow and not far else None,
        )  # fmt: skip
        self.write(of, outcome, origin)
        if far and self.split.search:
            for prompt, value in zip(self.split.search, far, strict=False):
                self.images(of, prompt, value)

    def write(self, of: Plan, outcome: Outcome, origin: Any = "sampler") -> None:
        """Write a trial with any outcome."""
        number = len(self.trials)
        self.ledger.append("start", {"number": number, "plan": str(of)})
        trial = Trial(number=number, plan=of, outcome=outcome, origin=origin, seconds=14.0)
        self.trials.append(trial)
        self.ledger.append("trial", trial.model_dump(mode="json"))

    def search(self) -> None:
        """Write every plan of the made-up search, two of them failures."""
        self.baseline()
        for index, (of, ratio, lpips) in enumerate(TRIED):
            self.trial(of, ratio, lpips, "seed" if index < 4 else "sampler")
            if index == 5:
                self.write(plan(8), Failed(
                    stage="guard", reason="image 0 is black (brightest value 0.000)",
                    evidence="brightest value <0.000>",
                ))  # fmt: skip
        self.write(plan(tea=1.4), Failed(stage="timeout", reason="no answer within 91 s"))

    def certify(self, *, worse: float = 1.0) -> tuple[Verdict, Rounds]:
        """Write finalists, and the test of the first of them."""
        plans = finalists(self.trials, self.goal, REFERENCE)
        level = alpha_each(len(plans), self.goal, 1)
        self.ledger.append("finalists", {
            "plans": [p.model_dump(mode="json") for p in plans], "names": [str(p) for p in plans],
            "prompts": self.split.certify_hash, "openings": 1, "alpha_each": level, "n": 32,
        })  # fmt: skip
        rounds = self.rounds(plans[0], worse)
        found = bounds(rounds, self.goal, REFERENCE, level)
        verdict = Verdict(plan=plans[0], passed=all(b.holds for b in found.values()),
                          bounds=found, n=32, alpha_each=level)  # fmt: skip
        self.ledger.append("verdict", verdict.model_dump(mode="json"))
        return verdict, rounds

    def rounds(self, of: Plan, worse: float) -> Rounds:
        """Write the interleaved calls of a finalist."""
        name, ours, theirs = of.digest()[:12], [], []
        for index, prompt in enumerate(self.split.certify):
            slow = self.random.uniform(0.97, 1.06)
            theirs.append(self.sample(f"certify-baseline:{name}", prompt, slow, ()))
            lpips = worse * 0.062 * self.random.lognormvariate(0.0, 0.4)
            ratio = 0.335 * slow * self.random.uniform(0.98, 1.03)
            ours.append(self.sample(f"certify:{name}", prompt, ratio, (lpips,),
                                    self.statistics(of, index)))  # fmt: skip
            self.images(of, prompt, lpips)
        return Rounds(candidate=tuple(ours), baseline=tuple(theirs))

    def sample(self, role: str, prompt: Prompt, ratio: float, lpips: tuple[float, ...],
               statistics: Any = None) -> Sample:  # fmt: skip
        """Write one call."""
        sample = Sample(role=role, prompts=(prompt.id,), seconds=ratio * REFERENCE, lpips=lpips,
                        memory_bytes=940 * 2**20, statistics=statistics or {})  # fmt: skip
        self.ledger.append("sample", sample.model_dump(mode="json"))
        if "baseline" in role:
            save_png(picture(prompt.seed), self.folder / "images/baseline" / f"{prompt.id}.png")
        return sample

    def images(self, of: Plan, prompt: Prompt, lpips: float) -> None:
        """Draw the tuned image: the untouched one, moved the more the greater the distance."""
        path = self.folder / "images" / of.digest()[:12] / f"{prompt.id}.png"
        save_png(picture(prompt.seed, moved=lpips), path)

    def statistics(self, of: Plan, index: int = 0) -> dict[str, dict[str, Any]]:
        """Return step masks as the hooks write them."""
        steps = of.settings("steps")["num_inference_steps"] if "steps" in of else 50
        found: dict[str, dict[str, Any]] = {}
        if "guidance_interval" in of:
            guided = round(0.8 * steps)
            mask = "1" * guided + "0" * (steps - guided)
            found["guidance_interval"] = {"mask_cond": "1" * steps, "mask_uncond": mask}
        if "tea_cache" in of:
            every = 2 + index % 2
            mask = "".join("1" if i < 3 or i % every == 0 else "0" for i in range(steps))
            used = mask[: round(0.8 * steps)] if "guidance_interval" in of else mask
            found["tea_cache"] = {
                "computed": mask.count("1"), "reused": mask.count("0"),
                "hit_rate": mask.count("0") / len(mask), "mask_cond": mask,
                "mask_uncond": used,
            }  # fmt: skip
        return found

    def bought(self) -> None:
        """Write the winner less each of its passes, on half of the prompts."""
        for of, ratio, lpips in ((plan(tea=0.2, guidance=0.8), 0.55, 0.031),
                                 (plan(30, guidance=0.8), 0.52, 0.041)):  # fmt: skip
            self.trial(of, ratio, lpips, "bought", 3)
        self.write(plan(30, tea=0.2), Failed(stage="crash", reason="worker died"), "bought")

    def conclude(self, verdict: Verdict, rounds: Rounds) -> PolicyFile:
        """Make the policy from what was written, and end the study."""
        stated = certificate([verdict], finalists(self.trials, self.goal, REFERENCE),
                             self.split, 1)  # fmt: skip
        facts = evidence(verdict.plan, rounds, self.noise, self.goal, self.trials, stated,
                         1 - verdict.alpha_each)  # fmt: skip
        self.end("certified")
        return PolicyFile.of(
            verdict.plan, status="certified", goal=self.goal, case=case(), evidence=facts,
            provenance=Provenance(planner="0.1.0", time="2026-11-20T10:14:00+00:00"),
        )

    def end(self, status: str) -> None:
        """Write the last record."""
        self.ledger.append("end", {"status": status, "seconds": 812.0, "share_in_pipeline": 0.83,
                                   "overhead_seconds_per_trial": 3.4})  # fmt: skip


def certified_study(folder: Path, **options: Any) -> PolicyFile:
    """Write a whole study that ended with a certificate; returns its policy."""
    fake = Fake(folder, **options)
    fake.search()
    verdict, rounds = fake.certify()
    fake.bought()
    return fake.conclude(verdict, rounds)


def picture(seed: int, moved: float = 0.0, side: int = 64) -> np.ndarray[Any, Any]:
    """Draw a disc on a gradient; `moved` shifts and tints it."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:side, 0:side] / side
    base = np.stack([0.35 + 0.4 * across, 0.5 + 0.3 * down, 0.7 - 0.3 * across], axis=-1)
    base += 0.06 * np.sin(across * 40)[..., None]
    x, y = rng.uniform(0.3, 0.7, 2) + moved * np.array([0.9, 0.5])
    disc = (across - x) ** 2 + (down - y) ** 2 < 0.045
    base[disc] = rng.uniform(0.1, 0.95, 3) * (1 - moved)
    return (np.clip(base, 0, 1) * 255).round().astype(np.uint8)
