"""Readers of data sets: published folder layouts, custom tables, and packs."""

from __future__ import annotations

from pathlib import Path

from cpips._utils.io import check_regular

from ..dataset import Dataset, DatasetError
from ..resize import check_rule
from . import bapps, mos, packed, recent, tables
from .common import Found, folders, names, refuse
from .packed import pack

__all__ = ["find", "open_datasets", "pack"]

KNOWN = """  BAPPS      2afc/{train,val}/FAMILY/{ref,p0,p1,judge}/, jnd/val/FAMILY/{p0,p1,same}/; or any folder of these
  TID2013    mos_with_names.txt, distorted_images/, reference_images/
  KADID-10k  dmos.csv, images/
  CSIQ       src_imgs/, dst_imgs/, csiq.DMOS.csv (or .txt, .xlsx, csiq_label.txt)
  LIVE       refimgs/, jp2k/, jpeg/, wn/, gblur/, fastfading/, dmos_realigned.mat or dmos.mat
  PIPAL      Train_Ref/, Train_Label/, Train_Dist/ or Distortion_1/ to Distortion_4/
  KADID-10k remade  dmos.csv, ref/, images/
  CID22      CID22_validation_set.csv and the folders that it names
  KonJND-1k  subjective_ratings.csv, source_image/, jpeg/, bpg/
  AIC-3      original/, decoded/info.csv
  AIC-4      JPEG_AIC_reconstructed_jnd_scores.csv, PTC_images/
  NIGHTS     data.csv, ref/, distort/
  PieAPP     test_reference_list.txt, labels/test/, reference_images/test/, distorted_images/test/
  CLIC 2AFC  clicYYYY_perceptual_PART_answers.csv and the crops
  RAID       responses.csv and the images
  subset     scores.csv with dist, ref, and mos or dmos
  packed     pack.json, items.parquet, images.npy
  a .csv     ref, p0, p1, judge; or p0, p1, same; or ref, image, and mos or dmos"""


def open_datasets(path: Path, *, split: str = "val", resize: str | None = None) -> list[Dataset]:
    """The data sets at ``path``: a folder in a known layout, a packed folder or a ``.csv``; one for each task.

    Labels are read and paired with their images; no image is decoded.

    Args:
        split: of BAPPS: ``'val'`` or ``'train'``, where ``path`` does not name it itself.
        resize: a rule of :mod:`bapps_eval.resize`; default: the set's own, ``'pil-bilinear-64'`` for BAPPS, the packed
            one for a pack, else ``'none'``.

    Raises:
        DatasetError: nothing known lies there, or what lies there is damaged: the first problem is named
            (:func:`bapps_eval.check.check_folder` lists them all).
    """
    return [found.read(refuse) for found in find(path, split=split, resize=resize)]


def find(path: Path, *, split: str = "val", resize: str | None = None) -> list[Found]:
    """What :func:`open_datasets` would open; one or more.

    Raises:
        DatasetError: nothing known lies there; ``resize`` is not a rule.
        OSError: it is a named pipe or a device, or cannot be opened.
    """
    path = Path(path)
    if resize is not None:
        try:
            check_rule(resize)
        except ValueError as error:
            raise DatasetError(str(error)) from None
    if not path.exists():
        raise DatasetError(f"no such file or folder: {path}")
    if not path.is_dir():
        check_regular(path)
    if found := _find(path, split, resize):
        return found
    if path.is_file():
        raise DatasetError(f"{path} is no data set: give a folder in a layout that is known, or a .csv\n{KNOWN}")
    inside = names(path)
    told = f"it holds {', '.join(inside[:10])}{' ...' if len(inside) > 10 else ''}" if inside else "it is empty"
    deeper = [str(below) for below in folders(path)[:20] if _is_known(below)]
    hint = f"; did you mean {' or '.join(deeper)}?" if deeper else ""
    raise DatasetError(f"{path} is in no layout that is known ({told}){hint}\n{KNOWN}")


def _is_known(path: Path) -> bool:
    try:
        return bool(_find(path, "val", None))
    except DatasetError:  # it is one, and something is wrong with it
        return True


def _find(path: Path, split: str, resize: str | None) -> list[Found]:
    for layout in (packed, bapps, mos, recent, tables):
        if found := layout.find(path, split, resize):
            return found
    return []
