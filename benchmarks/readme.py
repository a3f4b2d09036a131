"""Write the measured numbers into the README, from ``results/*.json`` and the model cards: ``python benchmarks/readme.py``.

Each stands between ``<!-- name -->`` and ``<!-- /name -->``; the tests hold the README to what this would write.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from _common import RESULTS, table

import cpips

README = Path(__file__).resolve().parents[1] / "README.md"


def agreement() -> str:
    from bapps_eval.report.tables import overview

    return overview(json.loads((RESULTS / "agreement.json").read_text())["comparisons"], format="markdown").strip()


def severity() -> str:
    result = json.loads((RESULTS / "severity.json").read_text())
    return "; ".join(f"{kind}: rising in {k['steps'] - k['steps_down']} of {k['steps']} steps, in every step for "
                     f"{k['images_monotone']} of {result['images']} images" for kind, k in result["kinds"].items()) + "."


def speed() -> str:
    from speed import report

    result = json.loads((RESULTS / "speed.json").read_text())
    m = result["machine"]
    return f"{report(result)}\n\n({m['cpu']}, {m['threads']} threads, torch {m['torch']}.)"


def fast() -> str:
    from fast import report

    result = json.loads((RESULTS / "fast-speed.json").read_text())
    m = result["machine"]
    return f"{report(result)}\n\n({m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}.)"


def models() -> str:
    rows = []
    for name in cpips.list_models():
        card = cpips.model_card(name)
        training, kodak = card["training"], card["kodak"]
        cost = cpips.CPIPS(name).encoder.macs() / 1000
        rows.append([f"`{name}`", f"{card['arch']}, N={card['N']}, M={card['M']}", f"{card['parameters'] / 1e6:.2f} M",
                     f"{cost:.1f} k", f"{card['lambda']:g}", trained(training), f"{training['hardware']}",
                     f"{kodak['bpp']:.3f} bpp, {kodak['psnr']:.2f} dB", recognised(card.get("classification"))])
    return table(["model", "size", "encoder parameters", "MAC a pixel", "lambda", "training", "on", "Kodak", "top-1"], rows)


def recognised(found: dict | None) -> str:
    return f"{found['accuracy']:.1%} of {found['classes']} classes" if found else ""


def trained(training: dict) -> str:
    """Steps and hours of a run, after those of the runs that it started from."""
    own = f"{training['steps']:,} steps, {training['hours']:g} h"
    before = training.get("init")
    return f"{trained(before)}; then {own}" if before and "steps" in before else own


def family() -> str:
    from family import report

    result = json.loads((RESULTS / "family.json").read_text())
    return f"{report(result, brief=True)}\n\n![Agreement against rate, and linear probes, of every shipped model](docs/family.png)"


def rate_distortion() -> str:
    from rate_distortion import report

    result = json.loads((RESULTS / "rate_distortion.json").read_text())
    return (f"{report(result)}\n\n![PSNR against bits per pixel of cpips, JPEG, WebP, AVIF and the official codec]"
            "(docs/rate_distortion.png)")


def filled(text: str) -> str:
    for make in (agreement, severity, family, fast, speed, models, rate_distortion):
        name = make.__name__
        if not list(RESULTS.glob(f"{name}*.json")) and make is not models:
            continue  # until its first run
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if not re.search(pattern, text, flags=re.S):
            raise SystemExit(f"{README} has no place for {name}")
        text = re.sub(pattern, lambda found: f"{found[1]}{make()}\n{found[2]}", text, flags=re.S)
    return text


def main() -> None:
    text = README.read_text(encoding="utf-8")
    new = filled(text)
    README.write_text(new, encoding="utf-8")
    print("README.md " + ("brought up to date" if new != text else "was up to date"), file=sys.stderr)


if __name__ == "__main__":
    main()
