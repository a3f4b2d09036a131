"""``cpips models``: list the models and metrics."""

from __future__ import annotations

from typing import Annotated, Any, Mapping, Optional

import typer

from .._utils.console import JsonOption, print_json, print_table


def models(
    name: Annotated[Optional[str], typer.Argument(
        metavar="NAME", show_default=False, help="Print the card of this model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the shipped models with their measurements, and all metrics that --metric takes."""
    from .. import list_metrics, list_models, model_card
    from ..pretrained import DEFAULT_MODEL

    if name is not None:
        card = model_card(name)
        if as_json:
            print_json(card)
        else:
            print_table(["key", "value"], list(_flat(card)), title=name)
        return
    cards = {name: model_card(name) for name in list_models()}
    metrics = list_metrics()
    if as_json:
        print_json({"default": DEFAULT_MODEL, "models": list(cards.values()), "metrics": metrics})
        return
    rows = []
    for name, card in cards.items():
        kodak, parameters = card.get("kodak") or {}, card.get("parameters")
        rows.append((
            name + " (default)" * (name == DEFAULT_MODEL),
            f"{parameters / 1e6:.2f} M" if parameters else "",
            card.get("description") or f"{card.get('arch', '')} N={card.get('N', '?')} M={card.get('M', '?')}".strip(),
            f"{_short(kodak.get('bpp'))} bpp, {_short(kodak.get('psnr'))} dB" if kodak else "",
            "; ".join(f"{key} {value}" for key, value in _flat(card.get("agreement") or {})),
        ))
    columns = ["model", "params", "what it is", "Kodak", "agreement with people"]
    filled = [i for i in range(len(columns)) if i < 3 or any(row[i] for row in rows)]
    print_table([columns[i] for i in filled], [[row[i] for i in filled] for row in rows], right=["params"],
                notes=[f"--metric takes: {', '.join(metrics)}; a weights file; and, downloaded on request, "
                       "compressai:bmshj2018-hyperprior/mse/1 to /8 (and /ms-ssim/)"])


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        rows += _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else [(prefix + str(key), _short(item))]
    return rows


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    return "?" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
