import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from planner.case.goal import Goal
from planner.errors import UsageError
from planner.plans.plan import Plan
from planner.policy.file import PolicyFile
from planner.reporting import words
from planner.reporting.findings import read_findings
from planner.reporting.front_picture import front_picture
from planner.reporting.page import render, write_page
from planner.reporting.unused import unused
from planner.reporting.verdict import headline
from tests.page_study import (
    EXCLUDED,
    HOSTILE,
    TRIED,
    WINNER,
    Fake,
    certified_study,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Reads a page strictly: every element must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def page(folder: Path, policy: PolicyFile | None = None) -> Reader:
    return read(render(read_findings(folder, policy), folder / "images"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PolicyFile]:
    folder = tmp_path_factory.mktemp("study")
    return folder, certified_study(folder, hostile=True)


@pytest.fixture(scope="module")
def html(study: tuple[Path, PolicyFile]) -> str:
    folder, policy = study
    return render(read_findings(folder, policy), folder / "images")


def test_the_page_is_well_formed_and_loads_nothing(html: str) -> None:
    reader = read(html)
    sources = [attrs[key] for _, attrs in reader.seen for key in ("src", "href") if key in attrs]
    assert len(sources) > 27
    assert all(s and (s.startswith(("data:image/", "#"))) for s in sources)
    assert not {tag for tag, _ in reader.seen} & {"script", "link", "iframe", "object", "base"}
    assert "http" not in html
    assert "url(" not in html and "@import" not in html


def test_every_link_inside_the_page_has_its_target(html: str) -> None:
    reader = read(html)
    targets = {attrs["id"] for _, attrs in reader.seen if "id" in attrs}
    links = {str(attrs["href"])[1:] for tag, attrs in reader.seen if tag == "a"}
    assert {"front", "path", "pictures", "steps", "bought", "certificate"} < links <= targets


def test_a_hostile_prompt_is_text_and_nothing_else(html: str) -> None:
    reader = read(html)
    assert "<script>alert" not in html
    assert " ".join(HOSTILE.split()) in reader.text
    assert not [attrs for _, attrs in reader.seen if "onerror" in attrs]
    alts = [attrs["alt"] for tag, attrs in reader.seen if tag == "img"]
    assert any(HOSTILE in str(alt) for alt in alts)


def test_the_verdict_states_the_policys_figures(html: str, study: Any) -> None:
    evidence = study[1].evidence
    text = read(html).text
    assert f"{1 / evidence.latency.ratio.value:.2f}× as fast" in text
    assert f"(at least {1 / evidence.latency.ratio.upper:.2f}×)" in text
    assert f"mean LPIPS {evidence.lpips.mean.value:.4f} (at most {evidence.lpips.mean.upper:.4f})" \
        in text  # fmt: skip
    assert str(WINNER) in text
    assert words.count(evidence.pays_off_after_images, "image") in text
    within = words.seconds(evidence.latency.holds_while_baseline_within)
    assert f"renders in at most {within} here" in text


def test_every_rejected_pass_gives_its_sentence(html: str) -> None:
    text = read(html).text
    assert all(sentence in text for sentence in EXCLUDED.values())


def test_every_legal_pass_that_the_plan_lacks_says_why(html: str) -> None:
    text = read(html).text
    assert "both reuse steps (a paper)" in text
    assert "in no plan that was tried" in text


def test_a_pass_that_was_tried_and_left_out_names_the_best_plan_with_it(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.search()
    worse = Plan.of({"first_block_cache": {"threshold": 0.3}})
    fake.trial(worse, 0.5, 0.2, "sampler")
    found = replace(read_findings(tmp_path, None), facts={"legal": ["first_block_cache", "steps"]})
    said = unused(found)
    assert set(said) == {"first_block_cache"}
    assert said["first_block_cache"].startswith(f"in 1 trial; best with it: {worse}, ")
    assert said["first_block_cache"].endswith("outside the limits or stopped early")


def test_failed_and_lost_trials_are_listed_with_their_reason(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.search()
    fake.ledger.append("lost", {"number": 77, "plan": "steps(9)"})
    text = page(tmp_path).text
    assert "failed at guard: image 0 is black (brightest value 0.000)" in text
    assert "failed at timeout: no answer within 91 s" in text
    assert "77 steps(9)" in text and "lost: the tuner stopped" in text


def test_every_trial_has_a_row_and_the_winner_is_marked(html: str, study: Any) -> None:
    rows = [attrs for tag, attrs in read(html).seen if tag == "tr" and "class" in attrs]
    assert len(rows) == len(read_findings(*study).trials)
    assert [row["class"] for row in rows].count("winner") == 1


def test_what_a_pass_bought_is_compared_on_the_same_prompts(study: Any, html: str) -> None:
    found = read_findings(*study)
    bought = {one.name: one for one in found.bought}
    mine = found.trial and found.trial.measured
    assert mine is not None
    assert bought["steps"].n == 3
    assert bought["steps"].lpips_with == pytest.approx(sum(mine.lpips[:3]) / 3)
    assert bought["guidance_interval"].failed == "worker died"
    assert "without it: failed, worker died" in read(html).text


def test_a_study_that_has_measured_nothing_has_a_page(tmp_path: Path) -> None:
    Fake(tmp_path)
    text = page(tmp_path).text
    assert "No plan has been measured yet" in text
    assert "No trial has finished yet" in text


def test_an_unfinished_study_shows_its_best_plan(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.baseline()
    for of, ratio, lpips in TRIED[:5]:
        fake.trial(of, ratio, lpips)
    text = page(tmp_path).text
    assert "unfinished" in text and "--resume" in text
    assert re.search(r"steps[^<]* > tea_cache[^<]* is the best plan after 5 trials", text)


def test_a_study_killed_in_its_certificate_has_a_page(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.search()
    for prompt in fake.split.certify[:2]:
        role = WINNER.digest()[:12]
        fake.sample(f"certify-baseline:{role}", prompt, 1.0, ())
        fake.sample(f"certify:{role}", prompt, 0.33, (0.07,), fake.statistics(WINNER))
    reader = page(tmp_path)
    assert "unfinished" in reader.text
    assert "images of 2 prompts no longer lie" in reader.text


def test_half_a_round_of_a_killed_certificate_counts_for_nothing(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.search()
    role = WINNER.digest()[:12]
    for prompt in fake.split.certify[:2]:
        fake.sample(f"certify-baseline:{role}", prompt, 1.0, ())
    first = fake.split.certify[0]
    fake.sample(f"certify:{role}", first, 0.9, (0.07,), fake.statistics(WINNER))
    fake.sample(f"certify:{role}", first, 0.33, (0.07,), fake.statistics(WINNER))
    rounds = read_findings(tmp_path, None).rounds(WINNER)
    assert rounds is not None and rounds.ratios == pytest.approx([0.33]), "the last one counts"
    assert "unfinished" in page(tmp_path).text


def test_a_plan_that_reuses_nothing_says_that_every_step_is_computed(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.baseline()
    fake.trial(Plan.of({"steps": {"num_inference_steps": 18}}), 0.36, 0.05)
    reader = page(tmp_path)
    assert "every one of 18 steps is computed in every branch" in reader.text
    links = [attrs["href"] for tag, attrs in reader.seen if tag == "a"]
    assert "#steps" in links


@pytest.mark.parametrize(("prefer", "named", "other"), [
    ("speed", "budget 2 s", "cap 2"), ("quality", "cap 0.1", "budget 0.1"),
])  # fmt: skip
def test_the_path_names_the_limit_on_what_it_shows(
    tmp_path: Path, prefer: Any, named: str, other: str
) -> None:
    fake = Fake(tmp_path, goal=Goal(budget_seconds=2.0, max_lpips=0.1, prefer=prefer))
    fake.search()
    html = render(read_findings(tmp_path, None), tmp_path / "images")
    drawn = html.partition('<section id="path">')[2].partition("</section>")[0]
    assert named in drawn and other not in drawn


def test_a_goal_that_nothing_meets_names_the_fastest_plan(tmp_path: Path) -> None:
    fake = Fake(tmp_path, goal=Goal(budget_seconds=0.8, max_lpips=0.02))
    fake.search()
    fake.end("none")
    text = page(tmp_path).text
    assert "no plan meets the goal" in text and "No policy was written" in text
    assert f"is the fastest of {len(TRIED)} measured plans" in text


def test_a_failed_certificate_names_the_bound_that_was_missed(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    fake.search()
    verdict, _ = fake.certify(worse=1.7)
    fake.end("not certified")
    said = headline(read_findings(tmp_path, None)).sentence
    assert f"mean LPIPS at most {verdict.bounds['lpips'].upper:.4f} instead of 0.1000" in said
    text = page(tmp_path).text
    assert "a bound lies over its limit on 32 prompts" in text
    assert "begin anew with --fresh" in text  # its finalists are fixed: this study cannot go on


def test_a_goal_without_a_cap_says_that_quality_is_not_constrained(tmp_path: Path) -> None:
    fake = Fake(tmp_path, goal=Goal(budget_seconds=2.0, quality="none", prefer="speed"))
    fake.search()
    text = page(tmp_path).text
    assert "quality not constrained" in text
    assert "What the search minimizes is seconds" in text


def test_a_lossless_goal_shows_the_cap_that_the_noise_floor_gives(tmp_path: Path) -> None:
    goal = Goal(budget_seconds=2.0, max_lpips=0.02, quality="lossless")
    fake = Fake(tmp_path, goal=goal)
    fake.noise = fake.noise.model_copy(update={"lpips": 0.04})
    fake.baseline()
    assert read_findings(tmp_path, None).goal.max_lpips == pytest.approx(0.06)


def test_the_same_ledger_gives_the_same_bytes(study: Any, tmp_path: Path, html: str) -> None:
    folder, policy = study
    write_page(tmp_path / "reports" / "page.html", folder, policy)
    assert (tmp_path / "reports" / "page.html").read_text(encoding="utf-8") == html
    front_picture(tmp_path / "a.png", folder)
    front_picture(tmp_path / "b.png", folder)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_page_that_cannot_be_written_leaves_the_old_one(study: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UsageError, match=r"cannot write .*: name a folder"):
        write_page(tmp_path / "file" / "page.html", *study)
    assert (tmp_path / "file").read_text() == "old"


def test_no_picture_is_drawn_of_a_study_without_images(tmp_path: Path) -> None:
    Fake(tmp_path)
    with pytest.raises(UsageError, match="has no images to show: tune until") as caught:
        front_picture(tmp_path / "x.png", tmp_path)
    assert caught.value.value == str(tmp_path)
