"""Rate and distortion of the shipped codecs on Kodak, compared with JPEG, WebP, AVIF and the official codec.

    python benchmarks/rate_distortion.py [--plot docs/rate_distortion.png] [--limit IMAGES] [--stepped | --classical | --codec NAME ... | --variable CODEC]
    python benchmarks/rate_distortion.py --refined CODEC --runs DIR [--steps N] [--bf16]

Each point of a curve is the mean over the images of bits per pixel (whole files, all headers) and of PSNR (RGB, 8 bits)
at one setting. Values at an equal rate are read off the curves: monotone cubic interpolation over the log of the rate.
BD-rate (and BD-PSNR) by the package ``bjontegaard``: how many more bits the plain qualities need at equal PSNR, and how
many dB more they have at equal rate, over the range that both curves cover. `cpips-lite@0.1` was trained for one rate; its
curve is that of its quantizer's steps, files all the same. JPEG, WebP and AVIF are those of the codec table of
:mod:`cpips.encoding.formats`, which `cpips encode` and `cpips sweep` share: JPEG and AVIF with and without chroma subsampling, AVIF
slow. ``--classical`` measures these again and keeps the rest, ``--codec`` some of our codecs. ``--variable`` measures a variable-rate codec (a name, or the file of its
weights) at the qualities of its levels, and keeps the rest. ``--refined`` refines its latents (`cpips refine`, by rate and squared error at
the weight that each level was trained with) on the central squares of every second image, where it stands beside itself and the other formats;
files in DIR are not made again. With ``--bf16`` gradients go through a decoder in bfloat16; coding and decoding do not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from bjontegaard import bd_psnr, bd_rate
from matplotlib.figure import Figure
from PIL import Image, features
from PIL import __version__ as pillow

import cpips
from _common import DATA, at_rate, center_square, codec_file, is_plain, kept, once, save, shipped, table
from cpips._utils.io import write_json
from cpips.codec.container import Bitstream, pack
from cpips.codec.evaluate import evaluate_codec, psnr_8bit
from cpips.codec.files import open_codec, save_picture
from cpips.codec.model import Codec
from cpips.codec.refine import refine
from cpips.encoding import list_formats, open_encoder
from cpips.images import from_pil
from cpips.training import official
from cpips.training.release import on_kodak

LADDER = (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90)
CLASSICAL = {  # name: format of the codec table, qualities
    "JPEG": ("jpeg", LADDER),
    "JPEG 4:4:4": ("jpeg-444", LADDER),
    "WebP": ("webp", (0, *LADDER)),
    "AVIF": ("avif", LADDER),
    "AVIF 4:2:0": ("avif-420", LADDER),
}
PLAIN = "plain"
STEPPED = "cpips-lite@0.1"
STEPS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of its quantizer
SQUARE = 256  # px, of the images that are refined
UNDERTRAINED = 0.5  # dB below the official codec at the same rate


def curve(name: str, qualities: tuple[int, ...], paths: list[Path]) -> list[dict]:
    """Mean rate and PSNR of a format of the codec table at each quality."""
    encoder = open_encoder(name)
    images = [Image.open(path).convert("RGB") for path in paths]
    points = []
    for quality in qualities:
        bpp = psnr = 0.0
        for image in images:
            data = encoder.encode(image, quality)
            bpp += 8 * len(data) / (image.width * image.height * len(images))
            psnr += psnr_8bit(from_pil(image), encoder.decode(data)) / len(images)
        points.append({"quality": quality, "bpp": round(bpp, 4), "psnr": round(psnr, 3)})
    return points


def classical(paths: list[Path]) -> dict:
    """The curves of the formats that can be written here, how they are written, and by which libraries."""
    here = {name: row for name, row in CLASSICAL.items() if row[0] in list_formats()}
    return {"pillow": pillow, "libraries": {name: features.version(name) for name in ("libjpeg_turbo", "webp", "avif")},
            "settings": {name: open_encoder(spec).description for name, (spec, _) in here.items()},
            "curves": {name: curve(*row, paths) for name, row in here.items()}}


def ms_ssim(image: torch.Tensor, decoded: torch.Tensor) -> float:
    """MS-SSIM over RGB, of images in [0,1] rounded to 8 bits."""
    import pytorch_msssim

    a, b = ((t * 255).round().clamp(0, 255)[None] for t in (image, decoded))
    return pytorch_msssim.ms_ssim(a, b, data_range=255).item()


def bjontegaard(ours: list[dict], other: list[dict]) -> dict:
    """BD-rate in percent and BD-PSNR in dB of ``ours`` against ``other``; ``why`` there is none where there is none."""
    a, b = (sorted(points, key=lambda point: point["bpp"]) for points in (other, ours))
    for points in (a, b):
        if len(points) < 4:
            return {"why": f"{len(points)} point{'s' * (len(points) > 1)}, needs 4"}
        if any(p["psnr"] >= q["psnr"] for p, q in zip(points, points[1:])):
            return {"why": "PSNR does not rise with rate"}
    ranges = {key: [max(a[0][key], b[0][key]), min(a[-1][key], b[-1][key])] for key in ("psnr", "bpp")}
    if any(low >= high for low, high in ranges.values()):
        return {"why": "the curves have no range in common"}
    values = [[p[key] for p in points] for points in (a, b) for key in ("bpp", "psnr")]
    settings = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    return {"rate_percent": round(float(bd_rate(*values, **settings)), 2),
            "psnr_db": round(float(bd_psnr(*values, **settings)), 3), "common_range": ranges}


def measure(name: str, paths: list[Path], curves: dict[str, list[dict]]) -> dict:
    """One shipped codec, from bitstreams that are written and decoded again."""
    card = cpips.model_card(name)
    found = evaluate_codec(open_codec(name), paths, ms_ssim=ms_ssim)
    there = {other: at_rate(found["bpp"], points) for other, points in curves.items()}
    point = official.BY_LAMBDA.get(card.get("lambda"))
    return {
        "lambda": card.get("lambda"), "codec_sha256": card["codec_sha256"],
        "bpp": round(found["bpp"], 4), "psnr": round(found["psnr"], 3), "ms_ssim": round(found["ms_ssim"], 5),
        "psnr_at_our_rate": {other: value and round(value, 3) for other, value in there.items()},
        "ms_ssim_official_at_our_rate": at_rate(found["bpp"], curves["official"], "ms_ssim"),
        "official_of_this_lambda": point and point._asdict(),
        "undertrained": there["official"] and found["psnr"] < there["official"] - UNDERTRAINED,
        "images": [{key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
                   for row in found["images"]],
    }


def rescaled(codec: Codec, step: float) -> Codec:
    """The same codec with a quantizer of another step: its latent divided by ``step``, and its scales with it. Where the
    latent leaves a linear layer and enters one, that is the same network with other weights."""
    state = codec.state_dict()
    last, spread = len(codec.g_a) - 1, len(codec.h_s) - 2  # which a ReLU follows
    smaller = [f"g_a.{last}.weight", f"g_a.{last}.bias", f"h_s.{spread}.weight", f"h_s.{spread}.bias"]
    larger = ["h_a.0.weight", "g_s.0.weight"]
    return Codec.from_state_dict(state | {key: state[key] / step for key in smaller}
                                 | {key: state[key] * step for key in larger})


def stepped(name: str, paths: list[Path]) -> list[dict]:
    """A shipped codec's own curve: mean rate and PSNR at each of ``STEPS``, by rate."""
    found = [(step, evaluate_codec(rescaled(open_codec(name), step), paths)) for step in STEPS]
    return sorted(({"step": step, "bpp": round(row["bpp"], 4), "psnr": round(row["psnr"], 3)} for step, row in found),
                  key=lambda point: point["bpp"])


def variable(name: str, paths: list[Path], curves: dict[str, list[dict]]) -> dict:
    """A variable-rate codec's curve, from bitstreams that are written and decoded again, and its BD-rates."""
    codec = open_codec(name)
    rows: dict[float, list[dict]] = {quality: [] for quality in codec.variable.qualities}
    for path in paths:
        for quality, found in rows.items():
            found += evaluate_codec(codec.at(quality), [path], ms_ssim=ms_ssim)["images"]
        print(path.name, *(f"{found[-1]['bpp']:.4f} {found[-1]['psnr']:.3f}" for found in rows.values()), sep="  ", flush=True)
    points = [{"quality": quality, **{key: round(sum(row[key] for row in found) / len(found), n)
                                      for key, n in (("bpp", 4), ("psnr", 3), ("ms_ssim", 5))}} for quality, found in rows.items()]
    return {"codec": codec.name, "digest": codec.digest, "images": len(paths), "points": points,
            "bd": {other: bjontegaard(points, there) for other, there in curves.items()}}


def refined(name: str, paths: list[Path], runs: Path, steps: int, bf16: bool) -> dict:
    """A variable-rate codec's curve at the qualities of every second level with and without refined latents, on the central squares of
    the images, from bitstreams that are decoded again; the other formats on the same squares; and the BD-rates."""
    codec, squares = open_codec(name), [square(path, runs) for path in paths]
    curves: dict[str, list[dict]] = {"refined": [], name: []}
    for quality in codec.variable.qualities[::2]:
        at = codec.at(quality)
        rows = [once(runs / f"{codec.digest}-{quality:g}-{steps}-{path.stem}.json", lambda: one_refined(at, path, steps, bf16)) for path in squares]
        for which, points in curves.items():
            points.append({"quality": quality, **{key: round(sum(row[which][key] for row in rows) / len(rows), digits)
                                                  for key, digits in (("bpp", 4), ("psnr", 3))}})
        print(quality, *(points[-1] for points in curves.values()), flush=True)
    others = {other: curve(*CLASSICAL[other], squares) for other in CLASSICAL if CLASSICAL[other][0] in list_formats()}
    return {"codec": name, "digest": codec.digest, "images": len(paths), "side": SQUARE, "steps": steps, "bf16": bf16, "curves": curves | others,
            "bd": {which: {other: bjontegaard(curves[which], points) for other, points in ({name: curves[name]} | others).items() if other != which}
                   for which in curves}}


def square(path: Path, folder: Path) -> Path:
    """The central square of an image, as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{path.stem}.png"
    save_picture(center_square(path, SQUARE), out)
    return out


def one_refined(codec: Codec, path: Path, steps: int, bf16: bool) -> dict:
    """Rate and PSNR of an image's own file and of the refined one."""
    image = cpips.images.load(path)
    stream = refine(image, codec, steps=steps, bfloat16=bf16).stream

    def facts(stream: Bitstream) -> dict:
        size = len(pack(stream, codec.name, codec.digest, codec.quality))
        return {"bpp": 8 * size / SQUARE**2, "psnr": psnr_8bit(image, codec.decode(stream))}

    return {"refined": facts(stream), codec.name: facts(codec.encode(image))}


def write_cards(codecs: dict, weights: Path) -> None:
    """Put what was measured of each codec on its card."""
    for name, found in codecs.items():
        path = weights / f"{name}.json"
        card = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, card | {"kodak": on_kodak(found, card["lambda"])}, indent=2)


def plain_curve(result: dict) -> list[dict]:
    """The codecs of one rate, as a curve."""
    return sorted((c for name, c in result["codecs"].items() if is_plain(name)), key=lambda point: point["bpp"])


def bd_of_plain(result: dict) -> dict:
    """BD-rates of the codecs of one rate, as a curve."""
    return {name: bjontegaard(plain_curve(result), points) for name, points in result["curves"].items()}


def report(result: dict) -> str:
    """Markdown: a row for each codec, what the others reach at its rate, and the BD-rates."""
    others = [name for name in result["curves"] if name not in ("JPEG 4:4:4", "AVIF 4:2:0")]
    rows = []
    for name, c in result["codecs"].items():
        there = [f"{value:.2f}" if (value := c["psnr_at_our_rate"][other]) else "-" for other in others]
        state = "undertrained" if c["undertrained"] else ""
        rows.append([f"`{name}`", f"{c['bpp']:.3f}", f"{c['psnr']:.2f}", f"{c['ms_ssim']:.4f}", *there, state])
    lines = []
    for other in others:
        lines.append(f"- BD-rate of `hyperprior-q*` against {other}: {_told(result['bd'][other])}")
    curve = "; ".join(f"{p['step']:g}: {p['bpp']:.3f} bits per pixel, {p['psnr']:.2f} dB" for p in result["stepped"])
    if found := result.get("variable"):
        lines += [f"- BD-rate of `{found['codec']}`, one model for all rates, against {'`hyperprior-q*`' if other == PLAIN else other}: "
                  f"{_told(bd)}" for other, bd in found["bd"].items()]
    if found := result.get("refined"):
        latents = {"refined": f"latents refined in {found['steps']} steps", found["codec"]: "its own latents"}
        lines += [f"- BD-rate of `{found['codec']}` with {latents[which]}, on central squares of {found['side']} px, against "
                  f"{'itself' if other == found['codec'] else other}: {_told(bd)}"
                  for which, bds in found["bd"].items() for other, bd in bds.items()]
    lines.append(f"- `{STEPPED}` at other steps of its quantizer (1: as trained): {curve}")
    header = ["codec", "bits per pixel", "PSNR (dB)", "MS-SSIM", *(f"{other} at this rate" for other in others), ""]
    return table(header, rows) + "\n\n" + "\n".join(lines)


def _told(found: dict) -> str:
    if "why" in found:
        return f"not computed ({found['why']})"
    low, high = found["common_range"]["psnr"]
    return f"{found['rate_percent']:+.1f} % bits, BD-PSNR {found['psnr_db']:+.2f} dB, over {low:.1f} to {high:.1f} dB"


def plot(result: dict, path: Path) -> None:
    styles = {"JPEG": ("#b08d57", "-"), "JPEG 4:4:4": ("#b08d57", ":"), "WebP": ("#5b8c5a", "-"),
              "AVIF": ("#7b5ea7", "-"), "AVIF 4:2:0": ("#7b5ea7", ":"), "official": ("#444444", "--")}
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in result["curves"].items():
        colour, line = styles[name]
        label = "official bmshj2018-hyperprior (published)" if name == "official" else name
        axes.plot([p["bpp"] for p in points], [p["psnr"] for p in points], line, color=colour, marker=".", label=label)
    plain = [c for name, c in result["codecs"].items() if is_plain(name)]
    if plain:
        axes.plot([c["bpp"] for c in plain], [c["psnr"] for c in plain], "-o", color="#0b4f8a",
                  label="hyperprior-q* of cpips")
    if found := result.get("variable"):
        axes.plot([p["bpp"] for p in found["points"]], [p["psnr"] for p in found["points"]], "-s", markersize=4, color="#d08700",
                  label=f"{found['codec']}, one model")
    axes.plot([p["bpp"] for p in result["stepped"]], [p["psnr"] for p in result["stepped"]], ":.", color="#c1440e",
              label=f"{STEPPED}, other quantizer steps")
    markers = iter("D^sPXv<>")
    for name, c in result["codecs"].items():
        if is_plain(name):
            axes.annotate(name.rsplit("-")[-1], (c["bpp"], c["psnr"]), (6, -12), textcoords="offset points",
                          color="#0b4f8a")
        else:
            axes.plot(c["bpp"], c["psnr"], next(markers), markersize=8, color="#c1440e", fillstyle="none", label=name)
    axes.set(xlabel="bits per pixel", ylabel="PSNR (dB)", xlim=(0, 1.7), ylim=(20, 41),
             title=f"Rate and distortion, mean of {result['images']} Kodak images")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def measured(paths: list[Path], kept_codecs: dict | None = None) -> dict:
    """All curves and codecs.

    Args:
        kept_codecs: an earlier result, whose codecs of ours are not measured again.
    """
    found = classical(paths)
    curves = found["curves"] | {"official": [point._asdict() for point in official.POINTS]}
    result = {"what": "mean bits per pixel of real files and mean RGB PSNR on Kodak", "images": len(paths), **found,
              "official_source": official.SOURCE, "curves": curves}
    if kept_codecs is None:
        result |= {"codecs": {name: measure(name, paths, curves) for name in shipped() if codec_file(name) and "lambdas" not in cpips.model_card(name)},
                   "stepped": stepped(STEPPED, paths)}
    else:
        result |= {key: kept_codecs[key] for key in ("codecs", "stepped", "variable", "refined") if key in kept_codecs}
        for codec in result["codecs"].values():
            there = {other: at_rate(codec["bpp"], points) for other, points in curves.items()}
            codec["psnr_at_our_rate"] = {other: value and round(value, 3) for other, value in there.items()}
    return result | {"bd": bd_of_plain(result)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, default=Path("docs/rate_distortion.png"))
    parser.add_argument("--limit", type=int, help="a trial with the first images only, whose result is not kept")
    parser.add_argument("--stepped", action="store_true", help="only the curve over the quantizer's steps; the rest as kept")
    parser.add_argument("--classical", action="store_true", help="only JPEG, WebP and AVIF; our codecs as kept")
    parser.add_argument("--codec", metavar="NAME", nargs="+", help="only these shipped codecs of one rate; the rest as kept")
    parser.add_argument("--variable", metavar="CODEC", help="only this variable-rate codec; the rest as kept")
    parser.add_argument("--refined", metavar="CODEC", help="only this variable-rate codec with refined latents; the rest as kept")
    parser.add_argument("--runs", type=Path, help="folder of what is refined")
    parser.add_argument("--steps", type=int, default=200, help="of a refinement")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--cards", type=Path, metavar="WEIGHTS", help="folder of the cards that are to have what was measured of the codecs of one rate")
    args = parser.parse_args()
    if args.refined and not args.runs:
        parser.error("--refined needs --runs")
    paths = sorted((DATA / "images" / "kodak").glob("*.png"))[: args.limit]
    if args.stepped:
        result = kept("rate_distortion") | {"stepped": stepped(STEPPED, paths)}
    elif args.codec:
        result = kept("rate_distortion")
        for name in args.codec:
            result["codecs"][name] = measure(name, paths, result["curves"])
            print(name, result["codecs"][name]["bpp"], result["codecs"][name]["psnr"], flush=True)
        result["bd"] = bd_of_plain(result)
    elif args.variable:
        result = kept("rate_distortion")
        result["variable"] = variable(args.variable, paths, result["curves"] | {PLAIN: plain_curve(result)})
    elif args.refined:
        result = kept("rate_distortion") | {"refined": refined(args.refined, paths[::2], args.runs, args.steps, args.bf16)}
    else:
        result = measured(paths, kept("rate_distortion") if args.classical else None)
    if args.cards:
        write_cards(result["codecs"], args.cards)
    print(report(result))
    plot(result, args.plot)
    if args.limit is None:
        print(save("rate_distortion", result))


if __name__ == "__main__":
    main()
