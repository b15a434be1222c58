"""Writes what a comparison of caches found: a page, its document, two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planner.measure.lpips import IMPLEMENTATION
from planner.policy.atomic import replace
from planner.reporting import words
from planner.reporting.draw_caching import curves_picture, steps_picture
from planner.tuning.bench.choose import AIM, fastest
from planner.tuning.bench.document import Comparison, Entry, Figure, Level, Row
from planner.tuning.bench.scale import HEAT_ROUNDS

NAME = "caching"
_SIDES = {"ours": "planner", "peer": "peer", "steps": "fewer steps"}


def document_path(out: Path) -> Path:
    """Return where a comparison's document lies."""
    return out / "reports" / f"{NAME}.json"


def write_report(found: Comparison, out: Path) -> Path:
    """Write document, pictures and page below `<out>/reports`; returns the page.

    Raises as `replace` does.
    """
    folder = document_path(out).parent
    replace(document_path(out), (found.model_dump_json(indent=1) + "\n").encode())
    replace(folder / f"{NAME}-curves.png", curves_picture(found))
    replace(folder / f"{NAME}-steps.png", steps_picture(found))
    path = folder / f"{NAME}.md"
    replace(path, page(found).encode())
    return path


def page(found: Comparison) -> str:
    """Return the page in Markdown."""
    return "\n".join([
        "# planner's caches beside those of other libraries", "",
        *_about(found), "",
        "## Fastest within a mean LPIPS", "", *_levels(found.levels), "",
        "![LPIPS against speed, one line a method](caching-curves.png)", "",
        "## Every setting that holds on unseen prompts", "", *_standings(found.levels), "",
        "## Every method as the search saw it", "", *_methods(found), "",
        "![Which steps each method computes](caching-steps.png)", "",
        "## The searched mask at as many computed forwards", "", *_equal(found), "",
        "## Left out", "", *_left_out(found), "",
        "## How it was measured", "", *_how(found), "",
    ])  # fmt: skip


def _about(found: Comparison) -> list[str]:
    call, device = found.workload.call, found.device
    versions = device.libraries | {k: v for k, v in found.peers.items() if v is not None}
    lacking = [name for name, version in found.peers.items() if version is None]
    return [
        f"`planner bench caching` on {device.name}, "
        f"{words.count(device.threads, 'thread')}, in {found.minutes:.0f} minutes of timed calls; "
        "`planner bench caching --quick` plays its best settings again.",
        f"{found.source.model}: {call.get('width')}×{call.get('height')} pixels, "
        f"{found.workload.steps} steps, {found.workload.guidance} guidance, "
        f"{found.workload.dtype}; an untouched call took {_figure(found.untouched)}. "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + "."
        + "".join(f" {name} was not installed: its caches are left out." for name in lacking),
    ]  # fmt: skip


def _levels(levels: Sequence[Level]) -> list[str]:
    rows = []
    for one in levels:
        bounds = one.ratio_interval
        interval = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else ""
        ratio = "–" if one.ratio is None else f"**{one.ratio:.3f}**{interval}"
        rows.append((f"{one.lpips:g}", _entry(one.ours), _entry(one.peer), ratio, one.rounds))
    header = ("mean LPIPS at most", "planner's best", "the peers' best",
              "times as fast as the peer's", "rounds")  # fmt: skip
    return [
        *_table(header, rows), "",
        "Above one planner's is faster. The peer's seconds over planner's; 95 % interval.",
    ]


def _entry(entry: Entry | None) -> str:
    if entry is None:
        return "none held"
    return f"{entry.setting}: {words.factor(entry.share.value)}, LPIPS {_bounded(entry.lpips)}"


def _standings(levels: Sequence[Level]) -> list[str]:
    rows = [
        (f"{level.lpips:g}", one.setting, _SIDES[one.side], words.factor(one.share.value),
         _figure(one.share), _bounded(one.lpips))
        for level in levels for one in level.standings
    ]  # fmt: skip
    header = ("level", "setting", "whose", "times as fast", "share of an untouched call", "LPIPS")
    return _table(header, rows) if rows else ["None held."]


def _methods(found: Comparison) -> list[str]:
    levels = [level.lpips for level in found.levels]
    header = ("method", "whose", "default", "LPIPS", "times as fast", "forwards computed", "tried",
              *(f"within {AIM * level:.3g}" for level in levels), "keeps")  # fmt: skip
    rows = [_method(row, levels, found) for row in found.methods if row.default is not None]
    return [
        *_table(header, rows), "",
        "Few prompts, one reading: for orientation. `tried` counts settings. Within "
        f"{AIM:g} of a level the search looks for what may hold there. Of "
        f"{found.workload.steps} steps in both branches "
        f"{found.workload.steps * found.workload.forwards_per_step} forwards of the block stack "
        "are computed untouched.",
    ]


def _method(row: Row, levels: Sequence[float], found: Comparison) -> tuple[str, ...]:
    default, seen = row.default, row.at_default
    assert default is not None
    within = [fastest(row.curve, AIM * level) for level in levels]
    held = row.comparable or seen
    return (
        row.method, row.source, f"{row.knob} {default.value}", words.lpips(default.lpips),
        words.factor(default.share), f"{sum(seen.computed.values()):.0f}" if seen else "–",
        str(len(row.curve)),
        *("–" if one is None else words.factor(one.share) for one in within),
        words.size(held.held.value) if held else "–",
    )  # fmt: skip


def _equal(found: Comparison) -> list[str]:
    rows = [(one.setting, _SIDES[one.side], f"{one.computed:g}", words.lpips(one.lpips), one.mask,
             f"{one.mask_computed:g}", words.lpips(one.mask_lpips), one.prompts)
            for one in found.equal]  # fmt: skip
    if not rows:
        return ["Not measured."]
    header = ("setting", "whose", "forwards", "LPIPS", "mask", "its forwards", "its LPIPS",
              "prompts")  # fmt: skip
    nearer = sum(one.mask_lpips <= one.lpips for one in found.equal)
    behind = [one.setting for one in found.equal if one.mask_lpips > one.lpips]
    said = f"The mask is nearer in {nearer} of {len(rows)} pairs"
    return [
        *_table(header, rows), "",
        "Every other method's fastest setting within each level, and the mask that computes no "
        f"more forwards, on the same prompts. {said}"
        + (f"; not nearer than {'; '.join(behind)}." if behind else "."),
    ]  # fmt: skip


def _left_out(found: Comparison) -> list[str]:
    out = [f"- {row.method} ({row.source}): {row.left_out}"
           + (f"; it {row.note}" if row.note else "") for row in found.methods if row.left_out]
    notes: dict[str, list[str]] = {}
    for row in found.methods:
        if row.note and not row.left_out:
            notes.setdefault(row.note, []).append(row.method)
    told = [f"- {', '.join(names)}: {note}" for note, names in notes.items()]
    return [*(out or ["None."]), "", "What to know of the others:", "", *told]


def _how(found: Comparison) -> list[str]:
    scale = found.scale
    levels = " and ".join(f"{level:g}" for level in scale.levels)
    return [
        "- Peers go on by their own public calls, planner's caches as a policy would put them on. "
        "Same prompts, seeds and initial latents; whole pipeline calls; after every untouched call "
        "its image must be bit-equal to the reference, so that nothing is left on the pipeline.",
        "- One main knob a method, from mild to bold, other settings at their defaults (the names "
        f"say which are not): {scale.points} settings, or as many as a knob has, on "
        f"{words.count(scale.prompts, 'prompt')} (on one where that showed a setting to be "
        "far off, or less than twice as fast as untouched); "
        "then at each level each side's fastest settings are timed again side by side, on "
        f"{words.count(HEAT_ROUNDS, 'prompt')}, and the best {scale.refined_methods} methods of "
        f"either side are tried at up to {scale.refined} more settings on "
        f"{words.count(scale.refined_prompts, 'prompt')}.",
        f"- Speed is a share of the untouched calls beside, one after every {scale.every:g} "
        "untouched calls' worth of others. "
        f"Calibrations learned from {words.count(scale.learning, 'prompt')} that are used for "
        "nothing else.",
        f"- At {levels} the best {scale.finalists} methods of either side went to "
        f"{scale.certified} prompts that the search had not seen, with at most {scale.attempts} "
        "settings each. A setting holds where a one-sided bound of 95 % on its mean LPIPS "
        "(Johnson's skew-corrected t) is at most the level. Each bound is for one setting: the "
        "choice among several is not corrected for, on either side alike.",
        f"- The ratio is the median over {scale.rounds} rounds of untouched call, planner's, "
        "peer's on one prompt each, the order of the two alternating; its interval is by order "
        "statistics.",
        "- Computed forwards count the weights of the blocks' linear layers that were called, by "
        "hooks, in a call that was not timed. What a method keeps are the most bytes of tensors "
        "alive when a forward began, seen at some steps, less those of an untouched call.",
        f"- {IMPLEMENTATION}.",
    ]  # fmt: skip


def _figure(one: Figure) -> str:
    unit = {"s": " s"}.get(one.unit, "")
    if one.lower is None or one.upper is None:
        return f"{one.value:.3g}{unit}"
    return f"{one.value:.3g}{unit} ({one.lower:.3g} to {one.upper:.3g})"


def _bounded(one: Figure) -> str:
    return words.lpips(one.value) + ("" if one.upper is None else f" (≤ {one.upper:.4f})")


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(map(str, header))} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]
