"""Write the measured numbers into README.md and docs/*.md: ``python benchmarks/readme.py``.

The numbers come from ``results/*.json`` and from the model cards. Each block stands between ``<!-- name -->`` and
``<!-- /name -->``. The tests fail if this command would change a page.
"""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from pathlib import Path

from _common import RESULTS, kept, table

import cpips
from cpips.pretrained import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[1]


def written(name: str) -> str:
    """What a benchmark itself writes of the result that it kept."""
    return importlib.import_module(name).report(kept(name))


def machine(result: dict) -> str:
    m = result["machine"]
    return f"{m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, torch {m['torch']}"


# ---- README.md ------------------------------------------------------------------------------------------------------

ROWS = 8  # of the README's table: the first of these that were measured
SUMMARY = tuple(dict.fromkeys((DEFAULT_MODEL, "cpips-lite", "cpips-base", "hyperprior-q4", "lpips-alex", "haarpsi", "vsi", "mdsi",
                               "ms-ssim", "ssim")))
HANDMADE = ("haarpsi", "vsi", "mdsi")
LARGER = "cpips-base"  # the model beside the default one that costs more
TITLES = {"tid2013-subset": "TID2013", "live-subset": "LIVE", "lpips-alex": "LPIPS (AlexNet)", "haarpsi": "HaarPSI",
          "vsi": "VSI", "mdsi": "MDSI", "ms-ssim": "MS-SSIM", "ssim": "SSIM"}
FORMULAS = {
    "latent": "d(x, x') = E|y - y'|^2 / (E|y|^2 + E|y'|^2 + eps)",
    "local": "d(x, x') = sum_l E[ |f_l - f'_l|^2 / (|f_l|^2 + |f'_l|^2 + eps) ]",
    "taps": "d(x, x') = sum_l E[ |u_l - u'_l|^2 ],   u = f / sqrt(|f|^2 + eps)",
    "contrast": "d(x, x') = sum_l E[ T( sum_c v_c (m_c - m'_c)^2 / (m_c^2 + m'_c^2 + a_c) ) ]       m: means of features over 16 px\n"
                "         + sum_l E_w[ T( sum_k u_k (s_k - s'_k)^2 / (s_k^2 + s'_k^2 + b_k) ) ]     s: contrasts, sqrt(mix of <f^2>)\n"
                "         + weighted squared difference of the mean colors",
    "structure": "d(x, x') = sum_l E[ 1 - (mean similarity + covariance similarity) / 2 ]   (in windows of 5 x 5 cells)",
}


def title(name: str) -> str:
    return TITLES.get(name, f"`{name}`")


def dataset_title(dataset: dict) -> str:
    """A data set's name, with the share of it that was measured if it is not complete."""
    return TITLES.get(dataset["name"], dataset["name"]) + (" (subset)" if dataset["missing"] else "")


def loss_cell(name: str) -> str:
    """Whether gradients are finite everywhere. Similarities such as SSIM count, because 1 - SSIM is a common loss."""
    untrained = {"trunk": "random", "heads": "ones"} if name.startswith("lpips-") else {}  # the fact needs no weights
    return "yes" if cpips.create_metric(name, **untrained).differentiable else "no"


def hero() -> str:
    facts = kept("hero")
    return (f"![Reference, distorted image and heat map of `{facts['metric']}`; the distance is {facts['distance']:.4g}]"
            "(docs/map.png)")


def summary() -> str:
    """One table of six to eight metrics: agreement, cost, and whether the metric can be minimized."""
    from cost import all_costs

    comparisons, cost = kept("agreement")["comparisons"], all_costs()
    scores = [{score["metric"]["name"]: score for score in c["scores"]} for c in comparisons]
    names = [name for name in SUMMARY if all(name in of_set for of_set in scores)][:ROWS]
    rows = [[title(name) + " (default)" * (name == DEFAULT_MODEL), *(srcc(of_set[name]) for of_set in scores),
             f"{cost[name]:.2g}x" if name in cost else "not measured", loss_cell(name)] for name in names]
    header = ["metric", *(f"{dataset_title(c['dataset'])}, SRCC" for c in comparisons), "time", "usable as a loss"]
    parts = [f"{TITLES.get(c['dataset']['name'], c['dataset']['name'])}: {'; '.join(c['dataset']['missing'])}"
             for c in comparisons if c["dataset"]["missing"]]
    what = ("SRCC is Spearman's correlation with human ratings, in brackets its 95 % bootstrap confidence interval"
            + f" ({'. '.join(parts)})" * bool(parts) + ". No metric of the table was trained on these data sets.")
    rated = [name for name in names if name in cpips.list_models() and "opinions" in cpips.model_card(name)]
    if rated:
        what += (f" {listed([title(name) for name in rated])} {'was' if len(rated) == 1 else 'were'} trained with ratings of KADID-10k, "
                 "which has some kinds of distortion in common with TID2013.")
    if LARGER in names:
        what += f" {title(LARGER)} was chosen from three runs knowing these scores, which favors it."
    timing = ("Time is that of a pair of 256 px on one CPU thread relative to LPIPS (AlexNet); HaarPSI, VSI and MDSI were timed at "
              "512 x 384 px beside `cpips-lite@0.1`.")
    return "\n\n".join([table(header, rows), wrapped(f"{what} {timing}"), wrapped(handmade(comparisons))])


def wrapped(text: str) -> str:
    return textwrap.fill(text, 125, break_on_hyphens=False, break_long_words=False)


def srcc(score: dict) -> str:
    low, high = score["interval"]
    return f"{score['srcc']:.3f} [{low:.3f}, {high:.3f}]"


def handmade(comparisons: list[dict]) -> str:
    """How the default model compares with hand-made indices, in a sentence for each data set."""
    said = []
    for comparison in comparisons:
        scores = {score["metric"]["name"]: score["srcc"] for score in comparison["scores"]}
        others = {name: scores[name] for name in HANDMADE if name in scores}
        if DEFAULT_MODEL not in scores or not others:
            continue
        duels = comparison.get("duels", {})
        groups: dict[str, list[str]] = {}
        for name, value in others.items():
            order = "below" if scores[DEFAULT_MODEL] < value else "above"
            known = {True: " (not significantly)", False: " (significantly)"}.get(duels.get(name, {}).get("tied"), "")
            groups.setdefault(order + known, []).append(f"{title(name)} ({value:.3f})")
        said.append(f"On {dataset_title(comparison['dataset'])}, {title(DEFAULT_MODEL)} ({scores[DEFAULT_MODEL]:.3f}) is "
                    + " and ".join(f"{order} {listed(names)}" for order, names in groups.items()) + ".")
    scores = [{score["metric"]["name"]: score["srcc"] for score in comparison["scores"]} for comparison in comparisons]
    if said and all(LARGER in of_set for of_set in scores):
        above = [name for name in HANDMADE if all(of_set.get(name, 0) > of_set[LARGER] for of_set in scores)]
        said.append(f"{title(LARGER)}" + (f" is below {listed([title(name) for name in above])} on both." if above
                                          else " is below none of them on both."))
    if said and not any(loss_cell(name) == "yes" for name in HANDMADE):
        said.append("The gradients of these hand-made indices are not finite everywhere: they are no losses.")
    return " ".join(said)


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def formula() -> str:
    """The default model's distance function, layers and cost."""
    metric = cpips.CPIPS()
    card = cpips.model_card(DEFAULT_MODEL)
    said = (f"The default model, `{DEFAULT_MODEL}`, uses the distance function `{metric.form}` on the features "
            f"{listed([f'`{tap}`' for tap in metric.taps])} at {metric.scales} scale{'s' * (metric.scales > 1)}. Its encoder has "
            f"{card['parameters'] / 1e6:.2f} M parameters and takes {metric.encoder.macs() / 1000:.1f} k multiply-accumulates a pixel.")
    return f"    {FORMULAS[metric.form]}\n\n{wrapped(said)}"


# ---- docs/ ----------------------------------------------------------------------------------------------------------


def agreement() -> str:
    from bapps_eval.report.tables import overview

    return overview(kept("agreement")["comparisons"], format="markdown").strip()


def severity() -> str:
    result = kept("severity")
    return "; ".join(f"{kind}: the distance rises in {k['steps'] - k['steps_down']} of {k['steps']} steps, and in every step for "
                     f"{k['images_monotone']} of {result['images']} images" for kind, k in result["kinds"].items()) + "."


def speed() -> str:
    from speed import report

    result = kept("speed")
    return f"{report(result)}\n\n({machine(result)}.)"


def fast() -> str:
    from fast import report

    tables = [f"{report(result)}\n\n({machine(result)}.)" for result in (kept("fast-compiled"), kept("fast-speed"))]
    return "\n\n".join(tables)


def peak() -> str:
    """How near to the machine's arithmetic, and the time of a pixel in images and batches of any size."""
    result, scaling = kept("fast-peak"), kept("fast-scaling")
    told = result["peak"]
    rows = []
    for name in dict.fromkeys(row["what"] for row in told):
        shares = {row["dtype"]: f"{row['share_of_peak']['median']:.0%} ({row['gflops']['median']:.0f} GFLOP/s)"
                  for row in told if row["what"] == name}
        rows.append([name, *shares.values()])
    sizes = [[f"{row['side']} px", str(row["batch"]), f"{row['time_of_a_pixel']['median']:.2f}"] for row in scaling["scaling"]]
    return (f"{table(['share of the fastest', *dict.fromkeys(row['dtype'] for row in told)], rows)}\n\n({told[0]['side']} px; "
            f"{machine(result)}.)\n\n{table(['side', 'batch', 'time of a pixel over that of one image of 256 px'], sizes)}\n\n"
            f"(`{scaling['scaling'][0]['model']}`, float32; {machine(scaling)}.)")


def models() -> str:
    rows = []
    for name in cpips.list_models():
        card = cpips.model_card(name)
        training, kodak = card["training"], card["kodak"]
        cost = cpips.CPIPS(name).encoder.macs() / 1000
        rows.append([f"`{name}`", f"{card['arch']}, N={card['N']}, M={card['M']}", f"{card['parameters'] / 1e6:.2f} M",
                     f"{cost:.1f} k", f"{card['lambda']:g}", trained(training), f"{training['hardware']}",
                     f"{kodak['bpp']:.3f} bpp, {kodak['psnr']:.2f} dB", top1(card.get("classification"))])
    return table(["model", "size", "encoder parameters", "MAC a pixel", "lambda", "training", "on", "Kodak", "top-1"], rows)


def cards() -> str:
    """A section for each shipped model, whatever its card holds beyond the curve."""
    return "\n\n".join(f"## {name}\n\n{_card(cpips.model_card(name))}" for name in cpips.list_models())


def _card(card: dict) -> str:
    training, kodak = card["training"], card["kodak"]
    rows = [["architecture", f"{card['arch']}, N={card['N']}, M={card['M']}, {card['parameters']:,} parameters, {card['dtype']}"],
            ["input", card["preprocessing"]], ["license", card["licence"]],
            ["data", ", ".join(f"`{source}`" for source in training["data"])],
            ["config", f"`{training['config']}`, lambda {card['lambda']:g}, seed {training['seed']}"],
            ["training", f"{trained(training)}; {training['optimizer']}; {training['hardware']}; torch {training['torch']}"],
            *([["notes", training["notes"]]] if training.get("notes") else []),
            ["commit", f"`{training['commit'][:12]}`"],
            ["Kodak", f"{kodak['bpp']:.3f} bits per pixel, {kodak['psnr']:.2f} dB, over {kodak['images']} images"]]
    if top1(card.get("classification")):
        found = card["classification"]
        low, high = found.get("interval", (None, None))
        rows.append(["top-1", f"{top1(found)} (`{found['data']}`)" + (f", [{low:.1%}, {high:.1%}]" if low is not None else "")
                     + (f"; started from {found['starts_from']}" if "starts_from" in found else "")])
    if "judgement" in card:
        judgement = card["judgement"]
        rows.append(["calibrated", f"{judgement['calibrated']} ({', '.join(judgement['teachers'])}); form {judgement['form']}, taps "
                     f"{', '.join(judgement['taps'])}"])
    if "opinions" in card:
        opinions = card["opinions"]
        rows += [["human ratings", f"{opinions['labels']} ({', '.join(opinions['photographs'])}); {', '.join(opinions['teachers'])} label further copies "
                  f"and have a share of {opinions['teacher_share']:g} in each label; `{opinions['config']}`, {opinions['steps']} steps, {opinions['hours']} h"],
                 ["KADID-10k, held out, SRCC", f"{opinions['held_out']['srcc']:.3f} on {opinions['held_out']['images']:,} images of ten references"]]
    for name, value in card.get("agreement", {}).items():
        low, high = card["agreement_intervals"][name]
        rows.append([name, f"{value:.3f} [{low:.3f}, {high:.3f}]"])
    rows += [["file", f"`{card['file']}`, SHA-256 `{card['sha256']}`"],
             ["whole codec", f"`{card['codec_file']}`, SHA-256 `{card['codec_sha256']}`"]]
    description = card["description"]
    return f"{description[0].upper()}{description[1:]}.\n\n" + table(["card", f"`{card['name']}`"], rows)


def top1(found: dict | None) -> str:
    return f"{found['accuracy']:.1%} of {found['classes']} classes" if found else ""


def trained(training: dict) -> str:
    """Steps and hours of a run, after those of the runs that it started from."""
    own = f"{training['steps']:,} steps, {training['hours']:g} h"
    before = training.get("init")
    return f"{trained(before)}; then {own}" if before and "steps" in before else own


def family() -> str:
    from family import report

    result = kept("family")
    return f"{report(result, brief=True)}\n\n![Agreement against rate, and linear probes, of every shipped model](docs/family.png)"


def joint() -> str:
    from joint import report

    result = kept("joint")
    sets = ", ".join(f"{count} of {name}" for name, count in (("TID2013", result["images"]["tid2013"]), ("LIVE", result["images"]["live"]),
                                                             ("KADID-10k, held out", result["images"]["kadid"])))
    return (f"{report(result)}\n\n(`benchmarks/joint.py`: {result['kodak']} Kodak images from real files, {result['thumbnails']:,} held-out "
            f"thumbnails of 200 classes, and images with human ratings: {sets}; 95 % bootstrap intervals; {machine(result)}.)\n\n"
            "![Rate against what joint training gives: top-1, and agreement](docs/joint.png)")


def rate_distortion() -> str:
    from rate_distortion import report

    result = kept("rate_distortion")
    return (f"{report(result)}\n\n![PSNR against bits per pixel of cpips, JPEG, WebP, AVIF and the official codec]"
            "(docs/rate_distortion.png)")


def judged() -> str:
    """What the card of the default model keeps of the groups that no step has seen."""
    card = cpips.model_card("cpips-lite@0.1")["judgement"]
    kept = card["kept_aside"]
    rows = [["`cpips-lite@0.1`", f"{kept['srcc']:.3f}", f"{kept['panel']:.3f}", ""]]
    rows += [[name, "", f"{share:.3f}", f"{kept['teachers_against_the_others'][name]:.3f}"]
             for name, share in kept["teachers"].items()]
    rows.append(["always with the majority", "", f"{kept['ceiling']:.3f}", ""])
    header = ["judge", "SRCC with the panel's mean", "2AFC with the panel", "2AFC with the other teachers alone"]
    return (f"{table(header, rows)}\n\n({kept['groups']} of {card['judged_groups']} groups, {kept['triplets']:,} triplets; a "
            f"teacher's own vote is part of the panel. The higher severity has the larger distance in {kept['severity_order']:.1%} of the "
            f"pairs of severities; {kept['below_shift']:.1%} of the copies have a smaller distance than a shift by one pixel.)")


def teachers() -> str:
    return f"{written('teachers')}\n\n({machine(kept('teachers'))}; teachers as implemented by `piq`.)"


def human_training() -> str:
    return written("human_training")


def ablation() -> str:
    from ablation import markdown

    result = kept("ablation")
    return (f"{markdown(result['variants'])}\n\n({result['steps']} steps each; the panel is {', '.join(result['teachers'])}; "
            f"BD-rate over {result['kodak_images']} Kodak images against the variant without teacher labels, - where the ranges of quality do not overlap "
            "quality.)\n\n![Agreement gained against BD-rate lost](tradeoff.png)")


def losses() -> str:
    from losses import report

    result = kept("losses")
    return f"{report(result)}\n\n({machine(result)}.)"


def recovery() -> str:
    return written("recovery")


def sr_losses() -> str:
    return written("sr_losses")


def losses_training() -> str:
    from losses import training_report

    result = kept("losses_training")
    return f"{training_report(result)}\n\n(128 px: batches of 4, 256 px: of 2; {machine(result)}.)"


def missing_detail() -> str:
    return f"{written('missing_detail')}\n\n({len(kept('missing_detail')['images'])} photographs.)"


def texture_loss() -> str:
    return written("texture_loss")


def timed_texture_loss() -> str:
    from texture_loss import report

    return report(kept("timed_texture_loss"))


def texture_candidates() -> str:
    return written("texture_candidates")


def texture_coding() -> str:
    return written("texture_coding")


def style_encoders() -> str:
    return written("style_encoders")


def machine_codec() -> str:
    from machine_codec import report

    result = kept("machine_codec")
    return f"{report(result)} On {machine(result)}."


def ray_scoring() -> str:
    return written("ray_scoring")


def ray_scoring_bill() -> str:
    from ray_scoring import arithmetic

    return arithmetic(kept("ray_scoring"))


def refinement() -> str:
    return written("refinement")


def semantic_ensemble() -> str:
    return (f"{written('semantic_ensemble')}\n\n![Crops of the original and of what each "
            "decoder shows of the same bits](semantic_ensemble.png)")


def papers() -> str:
    from papers import report

    return report()


def realism() -> str:
    from realism import report

    result = kept("realism")
    m = result["machine"]
    return (f"{report(result)}\n\n({result['images']} Kodak crops of {result['crop']} px, {result['patches']} patches of "
            f"{result['patch']} px, against the untouched ones; {m['cpu']}, {m['threads']} thread{'s' * (m['threads'] > 1)}.)\n\n"
            "![Realism against distortion of JPEG, blur, noise and codecs](realism.png)")


def probe_matrix() -> str:
    from probe_matrix import matrix, report, weaknesses

    result = kept("probe_matrix")
    return (f"{report(result)}\n\n({result['side']} px, {result['share']:.0%} of the steps; {machine(result)}.)"
            "\n\nThe table gives the distance, by the metric of the column, of images optimized for the metric of the row, relative to images "
            "optimized for the MSE, as geometric means over the four tasks:\n\n"
            f"{matrix(result)}\n\n### Findings for our own models\n\n{weaknesses(result)}")


def shifts() -> str:
    return written("shifts")


def precision() -> str:
    return written("precision")


def attack() -> str:
    return f"{written('attack')}\n\n({machine(kept('attack'))}.)"


def encode() -> str:
    return f"{written('encode')}\n\n({machine(kept('encode'))}.)"


def browser() -> str:
    return written("browser")


def opinion_scale() -> str:
    kept_scale = kept("opinion_scale")
    kadid, tid = kept_scale["kadid_held_out"], kept_scale["tid2013"]
    low, high = tid["pearson_interval"]
    return (f"On {kadid['images']:,} images of ten references of KADID-10k that were held out, the quality of `cpips-lite` is off by "
            f"{kadid['rmse']:.2f} of the scale (root of the mean square) and has a Pearson correlation of {kadid['plcc']:.3f} with people's "
            f"means. On the {tid['conditions']} conditions of the subset of TID2013 (a kind of distortion at a level, {tid['images']} images), "
            f"which it was not fitted to, the mean qualities have a Pearson correlation of {tid['pearson']:.3f} [{low:.3f}, {high:.3f}] with "
            f"people's, and {tid['level_pairs_in_order']} of {tid['level_pairs']} pairs of levels of one kind are in people's order "
            f"(`benchmarks/opinion_scale.py`).")


def runtimes_start() -> str:
    from runtimes import start_report

    return start_report(kept("runtimes"))


def runtimes_speed() -> str:
    from runtimes import speed_report

    return speed_report(kept("runtimes"))


def runtimes_differences() -> str:
    from runtimes import differences_report

    return differences_report(kept("runtimes"))


PAGES = {
    "README.md": (hero, summary, formula),
    "docs/index.md": (hero,),
    "docs/benchmarks.md": (agreement, severity, family, fast, peak, speed, rate_distortion),
    "docs/encode.md": (opinion_scale, encode),
    "docs/browser.md": (browser,),
    "docs/codec.md": (joint,),
    "docs/calibration.md": (judged, human_training, teachers, ablation),
    "docs/limits.md": (attack, shifts, precision),
    "docs/losses.md": (recovery, losses, losses_training),
    "docs/losses_at_work.md": (missing_detail, texture_loss, timed_texture_loss, texture_candidates, sr_losses, style_encoders),
    "docs/machine_codec.md": (machine_codec,),
    "docs/models.md": (models, cards),
    "docs/papers.md": (papers,),
    "docs/probes.md": (probe_matrix,),
    "docs/realism.md": (realism,),
    "docs/refinement.md": (refinement, texture_coding),
    "docs/scale.md": (ray_scoring, ray_scoring_bill),
    "docs/semantic_ensemble.md": (semantic_ensemble,),
    "docs/where-it-runs.md": (runtimes_start, runtimes_speed, runtimes_differences),
}


def filled(page: str) -> str:
    """The page as it should be."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for make in PAGES[page]:
        name = make.__name__
        stored = "runtimes" if name.startswith("runtimes_") else name.removesuffix("_bill")
        if not list(RESULTS.glob(f"{stored}*.json")) and make not in (summary, formula, models, cards, judged, peak):
            continue  # until its first run
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if not re.search(pattern, text, flags=re.S):
            raise SystemExit(f"{page} has no place for {name}")
        made = make().replace("](docs/", "](") if page.startswith("docs/") else make()  # images lie beside the page
        text = re.sub(pattern, lambda found: f"{found[1]}{made}\n{found[2]}", text, flags=re.S)
    return text


def main() -> None:
    for page in PAGES:
        old, new = (ROOT / page).read_text(encoding="utf-8"), filled(page)
        (ROOT / page).write_text(new, encoding="utf-8")
        print(f"{page} " + ("brought up to date" if new != old else "was up to date"), file=sys.stderr)


if __name__ == "__main__":
    main()
