"""Small trees in the layouts of the published data sets, for the tests of bapps_eval; the same bytes every time."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

FAMILIES_2AFC = ("cnn", "superres")
FAMILIES_JND = ("cnn", "traditional")


def photo(seed: int, width: int = 256, height: int = 256) -> np.ndarray:
    """``(height,width,3)`` uint8: smooth, with some structure."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def noisy(image: np.ndarray, strength: int, seed: int) -> np.ndarray:
    """With uniform noise of up to ``strength`` levels."""
    noise = np.random.default_rng(seed).integers(-strength, strength + 1, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def save(image: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **({"compress_level": 1} if path.suffix.lower() == ".png" else {}))
    return path


def save_share(share: float, path: Path, dtype: str = "float32") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array([share], dtype))
    return path


def bapps_tree(root: Path, *, tasks: Sequence[str] = ("2afc", "jnd"), count: int = 3, split: str = "val",
               families: Sequence[str] | None = None, size: int = 256) -> Path:
    """``count`` items a family. People prefer the less noisy image, and call a pair the same if there is little noise,
    in steps of a fifth (2AFC) or a third (JND)."""
    for task in tasks:
        for f, family in enumerate(families or {"2afc": FAMILIES_2AFC, "jnd": FAMILIES_JND}[task]):
            for i in range(count):
                seed, folder, stem = 1000 * f + i, root / task / split / family, f"{i:06d}"
                image, (a, b) = photo(seed, size, size), np.random.default_rng(seed).permutation([4, 40])
                if task == "2afc":
                    save(image, folder / "ref" / f"{stem}.png")
                    save(noisy(image, a, seed), folder / "p0" / f"{stem}.png")
                    save(noisy(image, b, seed + 1), folder / "p1" / f"{stem}.png")
                    share = (5 if b < a else 0) + (-1 if b < a else 1) * (i % 2)
                    save_share(share / 5, folder / "judge" / f"{stem}.npy")
                else:
                    save(image, folder / "p0" / f"{stem}.png")
                    save(noisy(image, a, seed), folder / "p1" / f"{stem}.png")
                    share = (3 if a < b else 0) + (-1 if a < b else 1) * (i % 2)
                    save_share(share / 3, folder / "same" / f"{stem}.npy")
    return root


def tid2013_tree(root: Path, *, references: Sequence[int] = (1, 25), kinds: Sequence[int] = (1, 8, 24),
                 levels: Sequence[int] = (1, 5)) -> Path:
    """As on real copies, the case of names differs between the table, the references and the distorted images."""
    lines = []
    for r in references:
        image = photo(r, 64, 48)
        save(image, root / "reference_images" / (f"I{r:02d}.BMP" if r < 25 else f"i{r:02d}.bmp"))
        for kind in kinds:
            for level in levels:
                name = f"i{r:02d}_{kind:02d}_{level}.bmp"
                save(noisy(image, 8 * level, 100 * r + 10 * kind + level), root / "distorted_images" / name)
                lines.append(f"{7 - level + kind / 100:.5f} {name.upper() if level > 1 else name.capitalize()}")
    (root / "mos_with_names.txt").write_text("\n".join(lines) + "\n")
    return root


def kadid10k_tree(root: Path, *, references: Sequence[int] = (1, 2), kinds: Sequence[int] = (1, 25),
                  levels: Sequence[int] = (1, 3)) -> Path:
    rows = [["dist_img", "ref_img", "dmos", "var"]]
    for r in references:
        image = photo(r, 64, 48)
        save(image, root / "images" / f"I{r:02d}.png")
        for kind in kinds:
            for level in levels:
                name = f"I{r:02d}_{kind:02d}_{level:02d}.png"
                save(noisy(image, 8 * level, 100 * r + 10 * kind + level), root / "images" / name)
                rows.append([name, f"I{r:02d}.png", f"{5 - level:.2f}", "0.500"])
    write_csv(root / "dmos.csv", rows)
    return root


def csiq_tree(root: Path, *, table: str = "csv") -> Path:
    """``table``: csv, txt (separated by spaces) or label."""
    rows, labels = [["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]], []
    for r, reference in enumerate(("1600", "boston")):
        image = photo(r, 64, 64)
        save(image, root / "src_imgs" / f"{reference}.png")
        kinds = (("noise", "awgn", "AWGN"), ("jpeg 2000", "jpeg2000", "jpeg2000"))
        for index, (type_, folder, token) in enumerate(kinds):
            for level in (1, 4):
                name = f"{reference}.{token}.{level}.png"
                save(noisy(image, 10 * level, 10 * r + level + index), root / "dst_imgs" / folder / name)
                rows.append([reference, str(index + 1), type_, str(level), "0.1", f"{level / 5 + index / 100:.3f}"])
                labels.append(f"{name} {rows[-1][-1]}")
    if table == "csv":  # as a spreadsheet saves the sheet: a title and an empty column before the table
        write_csv(root / "csiq.DMOS.csv", [["", "CSIQ", "", "", "", "", ""], *(["", *row] for row in rows)])
    elif table == "txt":
        (root / "csiq.DMOS.txt").write_text("\n".join(" ".join(row) for row in rows) + "\n")
    else:
        (root / "csiq_label.txt").write_text("\n".join(labels) + "\n")
    return root


def live_tree(root: Path, *, numbers: Sequence[int] = (1, 2, 3), refnames: bool = False,
              realigned: bool = True) -> Path:
    """Of every folder the images of these numbers; number 3 is an original. The others of the 982 entries are listed,
    as they always are, with NaN: nobody may read them."""
    from scipy.io import savemat

    counts = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    orgs, dmos, names, lines = [], [], [], {folder: [] for folder in counts}
    for f, (folder, count) in enumerate(counts.items()):
        for n in range(1, count + 1):
            orgs.append(int(n == 3 or n > 158))
            dmos.append(0.0 if n == 3 else 10 * f + n if n in numbers else np.nan)
            names.append("bikes.bmp" if n % 2 else "womanhat.bmp")
            if n in numbers:
                image = photo(n % 2, 48, 64)
                save(image if orgs[-1] else noisy(image, 10 * n, f), root / folder / f"img{n}.bmp")
                lines[folder].append(f"{names[-1]} img{n}.bmp {0 if orgs[-1] else 0.5}")
    for i, name in enumerate(("womanhat.bmp", "bikes.bmp")):
        save(photo(i, 48, 64), root / "refimgs" / name)
    for folder, text in lines.items():  # out of order and with blank lines, as they are
        (root / folder / "info.txt").write_text("\n\n".join(reversed(text)) + "\n")
    savemat(root / "dmos.mat", {"dmos": np.array([dmos]) + 100, "orgs": np.array([orgs])})
    if realigned:
        savemat(root / "dmos_realigned.mat", {"dmos_new": np.array([dmos]), "orgs": np.array([orgs])})
    if refnames:
        cells = np.empty((1, len(names)), object)
        cells[0] = names
        savemat(root / "refnames_all.mat", {"refnames_all": cells})
    return root


def pipal_tree(root: Path, *, split_folders: bool = False) -> Path:
    for r, reference in enumerate(("A0001", "A0002")):
        image, lines = photo(r, 48, 48), []
        save(image, root / "Train_Ref" / f"{reference}.bmp")
        for kind in (0, 5):
            name = f"{reference}_{kind:02d}_00.bmp"
            folder = f"Distortion_{1 + r}" if split_folders else "Train_Dist"
            save(noisy(image, 5 + 5 * kind, r + kind), root / folder / name)
            lines.append(f"{name},{1500.25 - 10 * kind}")
        (root / "Train_Label").mkdir(exist_ok=True)
        (root / "Train_Label" / f"{reference}.txt").write_text("\n".join(lines) + "\n")
    return root


def table_tree(root: Path, task: str = "mos", *, opinion: str = "score", count: int = 4) -> Path:
    """A folder with images and ``table.csv``; the path of the table."""
    columns = {"2afc": ["ref", "p0", "p1", "judge"], "jnd": ["p0", "p1", "same"],
               "mos": ["ref", "image", opinion]}[task]
    rows = [[*columns, "group"]]
    for i in range(count):
        names = [f"images/{column}_{i}.png" for column in columns[:-1]]
        for j, name in enumerate(names):
            save(noisy(photo(i, 40, 32), 20 * j, i), root / name)
        rows.append([*names, str(round(i / count, 3)), "ab"[i % 2]])
    return write_csv(root / "table.csv", rows)


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path
