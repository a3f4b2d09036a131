"""``cpips demo``: try the metric without own images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.console import DeviceOption, DtypeOption, ForceOption, JsonOption, number, print_json, print_table, say
from .metric import MetricOption, make_metric

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


def demo(
    folder: Annotated[Path, typer.Option(
        "--output", "-o", metavar="DIR", help="Folder for the images.")] = Path("cpips-demo"),
    metric: MetricOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Distort a sample image, compare the copies, and draw where one of them differs."""
    from .._utils.io import atomic, check_outputs
    from ..batch import score_pairs
    from ..viz.maps import draw_map

    measure = make_metric(metric, device, dtype, None)
    folder.mkdir(parents=True, exist_ok=True)
    reference = folder / "reference.png"
    files: list[tuple[Path, str]] = []
    pictures = _pictures()
    check_outputs([folder / name for name in (*(name for name, *_ in pictures), "map.png")], force=force)
    for name, what, picture, settings in pictures:
        path = folder / name
        with atomic(path) as stream:
            picture.save(stream, "JPEG" if path.suffix == ".jpg" else "PNG", **settings)
        if path != reference:
            files.append((path, what))
    results = list(score_pairs(((reference, path) for path, _ in files), measure))
    found = [(path, what, result.distance) for (path, what), result in zip(files, results)]
    facts = {"signature": measure.signature, "metric": measure.name, "reference": str(reference),
             "results": [{"image": str(path), "what": what, "distance": distance} for path, what, distance in found]}
    if hasattr(measure, "map"):
        facts["map"] = draw_map(measure, reference, folder / "local.png", folder / "map.png")["output"]
    if as_json:
        print_json(facts)
        return
    column = "distance" if measure.lower_is_better else f"{measure.name} (higher is closer)"
    rows = [(path.name, what, "error" if distance is None else number(distance)) for path, what, distance in found]
    print_table(["image", "distortion", column], rows, right=[column], notes=[measure.signature])
    where = f"; {facts['map']} shows where local.png differs" if "map" in facts else ""
    say(f"\nThe images are in {folder}{where}.")
    say("Compare your own:  cpips compare REF IMG [IMG ...]     See where:  cpips map REF IMG -o MAP.png")


def sample() -> NDArray[Any]:
    """The sample image, a mountain lake at dusk made from noise: ``(384,512,3)`` uint8 RGB."""
    import numpy as np
    from PIL import Image

    with Image.open(Path(__file__).with_name("sample.jpg")) as image:
        return np.array(image)


def _pictures() -> list[tuple[str, str, Image.Image, dict[str, Any]]]:
    """Return file name, distortion, image and settings for saving it; the reference comes first."""
    import numpy as np
    from PIL import Image, ImageFilter

    array = sample()
    reference = Image.fromarray(array)
    grain = np.random.default_rng(0).normal(size=array.shape)
    pictures: list[tuple[str, str, Image.Image, dict[str, Any]]] = [("reference.png", "none", reference, {})]
    for i, radius in enumerate((0.8, 1.6, 3.2), 1):
        blurred = reference.filter(ImageFilter.GaussianBlur(radius))
        pictures.append((f"blur-{i}.png", f"Gaussian blur, {radius} px", blurred, {}))
    for i, sigma in enumerate((6, 15, 40), 1):
        noisy = np.clip(array + sigma * grain, 0, 255).round().astype(np.uint8)
        pictures.append((f"noise-{i}.png", f"white noise, {sigma}/255", Image.fromarray(noisy), {}))
    for i, quality in enumerate((60, 20, 5), 1):
        pictures.append((f"jpeg-{i}.jpg", f"JPEG, quality {quality}", reference, {"quality": quality}))
    local = reference.copy()  # three distortions, each in a place of its own
    blocks = reference.resize((64, 48), Image.Resampling.BOX).resize(reference.size, Image.Resampling.NEAREST)
    for box, patch in (((290, 60, 430, 150), reference.filter(ImageFilter.GaussianBlur(2.5))),
                       ((40, 240, 150, 330), Image.fromarray(noisy)), ((330, 290, 470, 370), blocks)):
        local.paste(patch.crop(box), box)
    pictures.append(("local.png", "blur, noise and blocks in three places", local, {}))
    return pictures
