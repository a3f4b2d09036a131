"""``cpips realism``: how far the distribution of some images is from that of others."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Callable, Iterator, Optional

import typer

from .._utils.console import (
    BackgroundOption, DeviceOption, ForceOption, JsonOption, console, number, print_json, print_table)
from .._utils.devices import open_device
from .._utils.io import quiet_bombs


def realism(
    references: Annotated[Path, typer.Argument(
        metavar="REF_DIR", show_default=False, help="A folder of references, or what --save-reference wrote.")],
    images: Annotated[Path, typer.Argument(metavar="IMG_DIR", show_default=False, help="A folder of images.")],
    space: Annotated[str, typer.Option(
        metavar="NAME", help="Whose features: a model that `cpips models` lists, or inception (for FID and KID).")] = "hyperprior-q4",
    weights: Annotated[Optional[Path], typer.Option(
        metavar="FILE", show_default=False, help="Of inception: its weights file. Default: the cache, else a download.")] = None,
    resize: Annotated[Optional[str], typer.Option(
        metavar="RULE", show_default=False,
        help="none, or clean-SIDE, tf1-bilinear-SIDE, torch-bilinear-SIDE. Default: inception tf1-bilinear-299, models none.")] = None,
    patches: Annotated[Optional[int], typer.Option(
        min=2, metavar="SIDE", show_default=False,
        help="Measure patches of SIDE px in place of images (FID/256 of HiFiC: 256).")] = None,
    subsets: Annotated[Optional[int], typer.Option(
        min=1, metavar="N", show_default=False,
        help="KID as the mean over N random subsets of 1000, as torch-fidelity. Default: all samples at once.")] = None,
    neighbours: Annotated[int, typer.Option(min=1, metavar="K", help="Of precision and recall.")] = 3,
    keep: Annotated[int, typer.Option(
        min=2, metavar="N", help="Features that are kept, drawn at random, for all but the Frechet distance.")] = 10_000,
    save_reference: Annotated[Optional[Path], typer.Option(
        metavar="FILE", show_default=False, help="Keep what was computed of the references, as .safetensors.")] = None,
    background: BackgroundOption = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images of one size at a time; of large ones fewer.")] = 16,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that decode images.")] = 2,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two unpaired folders of images: Fréchet and kernel distance, precision and recall.

    Only with --space inception are these FID and KID. With a model's encoder they are called frechet-MODEL and kernel-MODEL;
    they rank sets of the same size by their realism in the features of that encoder, and are not comparable with others.
    """
    from .._utils.io import check_output
    from ..errors import CpipsError, ModelError
    from ..realism import Statistics, collect, encoder_space, fid, inception_space, kid, precision_recall

    if save_reference is not None:
        check_output(save_reference, [references, images, space, weights], force=force)
    quiet_bombs()
    where = open_device(device)
    rule: dict[str, Any] = {} if resize is None else {"resize": resize}
    if space == "inception":
        eye = inception_space(weights, device=where, **rule)
    elif weights is not None:
        raise ModelError(f"--weights are those of inception, not of {space}: give a model's file as --space")
    else:
        eye = encoder_space(space, device=where, **rule)
    settings: dict[str, Any] = {"space": eye, "patches": patches, "keep": keep, "batch_size": batch_size,
                                "workers": workers, "background": background}
    found = []
    for label, folder in (("references", references), ("images", images)):
        if folder.is_file() and folder.suffix == ".safetensors":
            found.append(Statistics.load(folder))
            continue
        with _counting(label) as progress:
            found.append(collect(folder, **settings, progress=progress))
    if save_reference is not None:
        found[0].save(save_reference)
    results = [fid(*found), kid(*found, subsets=subsets)]
    notes = []
    try:
        results += precision_recall(*found, neighbours=neighbours)
    except CpipsError as error:  # too few samples; the distances stand without them
        notes.append(f"no precision and recall: {error}")
    notes += [f"{result.name}: {note}" for result in results for note in result.notes]
    if as_json:
        print_json({"references": str(references), "images": str(images),
                    "results": [dataclasses.asdict(result) for result in results], "notes": notes})
        return
    rows = [(r.name, number(r.value), "" if r.standard_error is None else number(r.standard_error), f"{r.samples[0]}",
             f"{r.samples[1]}") for r in results]
    columns = ["measure", "value", "standard error", "references", "samples"]
    print_table(columns, rows, right=columns[1:], notes=[*(r.signature for r in results), *notes])


@contextmanager
def _counting(label: str) -> Iterator[Callable[[int], None]]:
    """Call it with the number of images that were read; told on a terminal alone."""
    terminal = console(stderr=True)
    if terminal is None:
        yield lambda done: None
        return
    with terminal.status(label) as status:
        yield lambda done: status.update(f"{label}: {done}")
