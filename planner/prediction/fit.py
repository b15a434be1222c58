"""Fit the roofline's constants: `python -m planner.prediction.fit DATA.csv`.

DATA.csv is in the format of published.csv. What the written file says of errors is cross-validated:
whole (model, device) pairs, devices, architectures and sources are left out in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from planner.prediction.fitting import (
    Prices,
    fit,
    fit_margin,
    gather,
    plain,
    ratios,
    techniques,
    trusted,
)
from planner.prediction.left_out import (
    FOOTINGS,
    GROUPS,
    left_out,
    left_out_memory,
    left_out_ratios,
    spread,
    summary,
)
from planner.prediction.published import read
from planner.prediction.speeds import FITTED


def main() -> None:
    """Read the command line, fit, cross-validate and write the constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=FITTED)
    args = parser.parse_args()
    rows, _ = read(args.data)
    samples, skipped = gather([row for row in rows if trusted(row)])
    prices = Prices([one for one in samples if plain(one.row)])
    timed = Prices([one for one in samples if one.row.seconds])
    known = techniques(timed, ratios(timed.samples), fit_margin(samples, fit(prices)))
    inside = summary(prices.logs(known) - prices.seen)
    errors = {name: left_out(prices, key) for name, key in GROUPS.items()}
    report = {
        "data": {"name": args.data.name, "rows": len(rows),
                 "sha256": hashlib.sha256(args.data.read_bytes()).hexdigest()},
        "fit": inside, "left_out": {name: summary(found) for name, found in errors.items()},
        "ratios_left_out": {
            name: summary(left_out_ratios(timed, known, GROUPS[name]))
            for name in ("pairs", "devices", "sources")
        },
        "memory_left_out": {
            name: summary(left_out_memory(samples, known, GROUPS[name]))
            for name in ("pairs", "devices", "sources")
        },
        "spread": {footing: spread(errors[name]) for footing, name in FOOTINGS.items()},
        "skipped": dict(skipped),
    }  # fmt: skip
    written = {"constants": known.model_dump(), **report}
    args.out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
