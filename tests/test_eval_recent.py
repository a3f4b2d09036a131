"""Readers of today's data sets, on small trees in their published layouts, and the table of sets."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from eval_trees import noisy, photo, save, write_csv
from typer.testing import CliRunner

from bapps_eval import DatasetError
from bapps_eval.catalog import SETS
from bapps_eval.check import check_folder
from bapps_eval.cli import app
from bapps_eval.dataset import TASKS
from bapps_eval.layouts import KNOWN, open_datasets
from bapps_eval.layouts.mos import PUBLISHED


def picture(path: Path, seed: int, strength: int = 0) -> Path:
    image = photo(seed, 48, 40)
    return save(noisy(image, strength, seed + strength) if strength else image, path)


def remade_tree(root: Path) -> Path:
    rows = [["dist_img", "ref_img", "type", "level", "dmos", "var", "ref_from"]]
    for r in (1, 2):
        picture(root / "ref" / f"I{r:02d}.webp", r)
        for kind in (1, 15):
            for level in (1, 3):
                name = f"I{r:02d}_{kind:02d}_{level:02d}.png"
                rows.append([name, f"I{r:02d}.png", kind, level, f"{5 - level}", "0.3" if level < 3 else "0", "exact" if r == 1 else "jpeg"])
                if kind != 15:
                    picture(root / "images" / name, r, 8 * level)
    write_csv(root / "dmos.csv", rows)
    return root


def cid22_tree(root: Path) -> Path:
    rows = [["reference_img", "distorted_img", "encoder", "MCOS"]]
    for r in ("a", "b"):
        picture(root / "original" / f"{r}.png", ord(r))
        rows.append([f"original/{r}.png", f"original/{r}.png", "Reference", "95"])
        for encoder in ("mozjpeg", "avif"):
            for q in (30, 60):
                picture(root / "compressed" / r / f"{encoder}_{q}.png", ord(r), 60 - q + 5)
                rows.append([f"original/{r}.png", f"compressed/{r}/{encoder}_{q}.png", encoder, f"{q + 20}.5"])
    write_csv(root / "CID22_validation_set.csv", rows)
    return root


def aic3_tree(root: Path, sign: int = 1) -> Path:
    rows = [["img.name", "codec", "quality", "score.jnd"]]
    for r in ("00001", "00002"):
        picture(root / "original" / f"{r}.png", int(r))
        for codec in ("jpeg", "vvc"):
            for q in (1, 2, 3):
                picture(root / "decoded" / r / f"{codec}_{r}_{q}.png", int(r), 5 * q)
                rows.append([r, codec, q, sign * (0.5 * q - (0.52 if q == 1 else 0))])  # near 0 the sign may turn
    write_csv(root / "decoded" / "info.csv", rows)
    return root


def aic4_tree(root: Path) -> Path:
    rows = [["img_num", "codec", "dlevel", "img_source", "img_distorted", "distortion", "CI_min", "CI_max"]]
    for r in (1, 2):
        place = root / "PTC_images" / f"{r:05d}"
        picture(place / f"PTC_{r:05d}_SRC.png", r)
        for level in (1, 2, 3):
            picture(place / f"PTC_{r:05d}_AVIF_{level}.png", r, 5 * level)
            rows.append([r, "AVIF", level, f"PTC_{r:05d}_SRC.png", f"PTC_{r:05d}_AVIF_{level}.png", 0.4 * level, 0.4 * level - 0.098, 0.4 * level + 0.098])
    write_csv(root / "JPEG_AIC_reconstructed_jnd_scores.csv", rows)
    return root


def konjnd_tree(root: Path) -> Path:
    rows = [["image_id", "Compression type", "ratings"]]
    for r in ("SRC001", "SRC002"):
        picture(root / "source_image" / f"{r}.png", int(r[3:]))
        for codec, suffix in (("JPEG", "jpg"), ("BPG", "png")):
            rows.append([f"{r}.png", codec, json.dumps([2, 2, 4, 5])])
            for level in (1, 2, 3, 4, 6):
                picture(root / codec.lower() / f"{r}_{codec}_{level:03d}.{suffix}", int(r[3:]), 4 * level)
    write_csv(root / "subjective_ratings.csv", rows)
    return root


def nights_tree(root: Path) -> Path:
    rows = [["id", "votes", "split", "prompt", "is_imagenet", "ref_path", "left_path", "right_path", "left_vote", "right_vote"]]
    for i in range(6):
        split, votes = ("test" if i < 4 else "val"), (5 if i == 3 else 8)
        paths = [f"ref/000/{i:03d}.png", f"distort/000/{i:03d}_0.png", f"distort/000/{i:03d}_1.png"]
        for path, strength in zip(paths, (0, 5, 40)):
            picture(root / path, i, strength)
        rows.append([i, votes, split, "a cat, sitting", "False", *paths, 1 - i % 2, i % 2])
    write_csv(root / "data.csv", rows)
    return root


def pieapp_tree(root: Path) -> Path:
    (root / "labels" / "test").mkdir(parents=True)
    for r in (1, 2):
        picture(root / "reference_images" / "test" / f"ref_{r}.png", r)
        rows = [["ref image", " distorted image", " score for distorted image"], [f"ref_{r}.png", f"ref_{r}.png", "0"]]
        for i in range(3):
            picture(root / "distorted_images" / "test" / f"ref_{r}" / f"noise_{i}.png", r, 10 * i + 4)
            rows.append([f"ref_{r}.png", f"noise_{i}.png", f"{i + 0.25}"])
        write_csv(root / "labels" / "test" / f"ref_{r}_per_image_score.csv", rows)
    (root / "test_reference_list.txt").write_text("ref_1.png\nref_2.png\n")
    return root


def clic_tree(root: Path) -> Path:
    lines = []
    for i in range(3):
        names = [f"crops/{i}_o.png", f"crops/{i}_a.png", f"crops/{i}_b.png"]
        for name, strength in zip(names, (0, 5, 40)):
            picture(root / name, i, strength)
        o, a, b = names
        lines += [f"{o},{a},{b},0", f"{o},{b},{a},1", f"{o},{a},{b},1", f"{o},{o},{b},0"]  # twice a, once b, once a check
    (root / "clic2021_perceptual_valid_answers.csv").write_text("\n".join(lines) + "\n")
    return root


def raid_tree(root: Path) -> Path:
    rows = [["Reference", "Distorted", "Response", "Response_Scaled"]]
    for r in (1, 2):
        picture(root / "images" / "reference" / f"img_{r:02d}.png", r)
        for kind in ("rot", "trans"):
            for level in (1, 2, 3):
                picture(root / "images" / kind / f"{kind}_img_{r:02d}_level_{level:02d}.png", r, 6 * (level - 1))
                rows.append([f"img_{r:02d}.png", f"{kind}_img_{r:02d}_level_{level:02d}.png", f"{0.7 * (level - 1)}", "5"])
    write_csv(root / "responses.csv", rows)
    return root


TREES = {"kadid10k-remade": remade_tree, "cid22-val": cid22_tree, "aic3": aic3_tree, "aic4": aic4_tree, "konjnd1k": konjnd_tree,
         "nights-test": nights_tree, "pieapp-test": pieapp_tree, "clic2021-2afc-valid": clic_tree, "raid": raid_tree}
SIZES = {"kadid10k-remade": 4, "cid22-val": 8, "aic3": 12, "aic4": 6, "konjnd1k": 20, "nights-test": 3, "pieapp-test": 6,
         "clic2021-2afc-valid": 3, "raid": 12}


def opened(name: str, root: Path):
    (found,) = open_datasets(root, split="test" if name.startswith("nights") else "val")
    return found


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_recognized_and_whole(name, tmp_path):
    found = opened(name, TREES[name](tmp_path / "set"))
    assert (found.name, len(found)) == (name, SIZES[name]) and found.task == next(s.task for s in SETS if s.name == name)
    assert found.missing or name in ("nights-test", "clic2021-2afc-valid")  # a small tree is partial, where the size is known
    images = [found.load(i) for i in range(len(found))]
    assert all(len(each) == len(TASKS[found.task]) and {image.shape for image in each} == {(40, 48, 3)} for each in images)
    if found.task == "mos":  # closer images have better scores
        quality = found.opinions if found.higher_is_better else -found.opinions
        error = [np.abs(a.astype(float) - b).mean() for a, b in images]
        for reference in set(found.references):
            mine = [i for i, r in enumerate(found.references) if r == reference]
            assert np.corrcoef(quality[mine], np.array(error)[mine])[0, 1] < -0.5
    assert found.digest == opened(name, tmp_path / "set").digest


@pytest.mark.parametrize("name", TREES)
def test_check_finds_nothing_wrong(name, tmp_path):
    (report,) = check_folder(TREES[name](tmp_path / "set"), split="test" if name.startswith("nights") else "val")
    assert report.ok and report.items == SIZES[name], report.problems


@pytest.mark.parametrize("name, lost, match", [
    ("kadid10k-remade", "ref/I02.webp", r"i02, the reference of .*I02_01_0\d.png, is not there"),
    ("cid22-val", "original/b.png", "b, the reference of .*is not there"),
    ("aic3", "original/00002.png", "00002, the reference of .*is not there"),
    ("aic4", "PTC_images/00002/PTC_00002_SRC.png", "ptc_00002_src, the reference of .*is not there"),
    ("konjnd1k", "source_image/SRC002.png", "SRC002.png, the source of .*is not there"),
    ("nights-test", "distort/000/001_1.png", "line 3: no such file: .*001_1.png"),
    ("pieapp-test", "reference_images/test/ref_2.png", "ref_2, the reference of .*is not there"),
    ("raid", "images/reference/img_02.png", "img_02, the reference of .*is not there"),
])
def test_a_missing_file_is_refused_by_name(name, lost, match, tmp_path):
    root = TREES[name](tmp_path / "set")
    (root / lost).unlink()
    with pytest.raises(DatasetError, match=match):
        opened(name, root)


@pytest.mark.parametrize("name, table, before, after, match", [
    ("kadid10k-remade", "dmos.csv", "4,0.3", "nan,0.3", "line 2: 'nan' is not a finite number"),
    ("kadid10k-remade", "dmos.csv", "4,0.3", "6,0.3", r"opinion 6.0 of i01_01_01 is outside of kadid10k-remade's scale, 1 to 5"),
    ("cid22-val", "CID22_validation_set.csv", "50.5", "high", "'high' is not a finite number"),
    ("cid22-val", "CID22_validation_set.csv", "MCOS", "score", "expected reference_img, distorted_img, encoder, mcos; mcos missing"),
    ("cid22-val", "CID22_validation_set.csv", "avif_30", "mozjpeg_30", "two items are called 'compressed/a/mozjpeg_30'"),
    ("aic3", "decoded/info.csv", "jpeg,2,1.0", "jpeg,2,", "'' is not a finite number"),
    ("aic4", "JPEG_AIC_reconstructed_jnd_scores.csv", ",0.302", ",x", "'x.*' is not a finite number"),
    ("konjnd1k", "subjective_ratings.csv", '"[2, 2, 4, 5]"', "many", "ratings 'many': expected a list of levels"),
    ("konjnd1k", "subjective_ratings.csv", "BPG", "AVIF", "compression type 'AVIF': expected JPEG or BPG"),
    ("nights-test", "data.csv", "0,1\n", "0,0\n", "left_vote and right_vote are both 0"),
    ("pieapp-test", "labels/test/ref_1_per_image_score.csv", "score for", "points for", "expected distorted image and score for"),
    ("clic2021-2afc-valid", "clic2021_perceptual_valid_answers.csv", "b.png,0\n", "b.png,2\n", "answer is '2': expected 0 or 1"),
    ("clic2021-2afc-valid", "clic2021_perceptual_valid_answers.csv", "b.png,0\n", "b.png\n", "line 1: 3 fields: expected original, a, b"),
    ("raid", "responses.csv", "0.7", "-3", "outside of raid's scale"),
])
def test_a_damaged_table_is_refused_by_name(name, table, before, after, match, tmp_path):
    root = TREES[name](tmp_path / "set")
    text = (root / table).read_text().replace("\r\n", "\n")
    assert before in text
    (root / table).write_text(text.replace(before, after, 1))
    with pytest.raises(DatasetError, match=match):
        opened(name, root)


def test_the_remade_kadid_says_what_it_is(tmp_path):
    found = opened("kadid10k-remade", remade_tree(tmp_path / "set"))
    assert any("kind 15" in note and "missing" in note for note in found.notes)
    assert "references by how they were recovered: 1 exact, 1 jpeg" in found.notes
    assert found.missing == ["4 of 10125 images, 2 of 81 references"]
    assert found.sigma == pytest.approx([np.sqrt(0.3 / 30)] * 4)  # where all agree, the least variance of the others
    assert set(found.groups) == {"Gaussian blur"}


def test_the_genuine_kadid_has_standard_errors_too(tmp_path):
    from eval_trees import kadid10k_tree

    (found,) = open_datasets(kadid10k_tree(tmp_path / "set"))
    assert found.name == "kadid10k" and found.sigma == pytest.approx([np.sqrt(0.5 / 30)] * len(found)) and not found.notes


def test_tid2013_has_its_standard_errors(tmp_path):
    from eval_trees import tid2013_tree

    root = tid2013_tree(tmp_path / "set")
    lines = (root / "mos_with_names.txt").read_text().splitlines()
    (root / "mos_std.txt").write_text("".join(f"{0.1 + i / 100:.3f}\n" for i in range(len(lines))))
    (found,) = open_datasets(root)
    of_name = {line.split()[1].lower()[:-4]: 0.1 + i / 100 for i, line in enumerate(lines)}
    assert found.sigma == pytest.approx([of_name[name] for name in found.ids], abs=1e-3)
    assert found.subset([0, 2]).sigma == pytest.approx(found.sigma[[0, 2]])
    (root / "mos_std.txt").write_text("0.1\n")
    with pytest.raises(DatasetError, match="mos_std.txt has 1 lines, but mos_with_names.txt has"):
        open_datasets(root)


@pytest.mark.parametrize("sign", [1, -1])
def test_jnd_scores_are_turned_so_that_higher_is_better(sign, tmp_path):
    found = opened("aic3", aic3_tree(tmp_path / "set", sign))
    by_level = {level: {round(o, 6) for i, o in zip(found.ids, found.opinions) if i.endswith(f"_{level}")} for level in (1, 2, 3)}
    assert found.higher_is_better and by_level == {1: {0.02}, 2: {-1.0}, 3: {-1.5}}


def test_aic4_has_standard_errors_of_its_intervals(tmp_path):
    found = opened("aic4", aic4_tree(tmp_path / "set"))
    assert found.sigma == pytest.approx([0.05] * 6) and found.opinions.max() == pytest.approx(-0.4)


def test_konjnd_counts_who_sees_no_difference_yet(tmp_path):
    found = opened("konjnd1k", konjnd_tree(tmp_path / "set"))
    shares = {name: share for name, share in zip(found.ids, found.opinions) if name.startswith("src001_JPEG")}
    assert [shares[f"src001_JPEG_{level:03d}"] for level in (1, 2, 3, 4, 6)] == [1, 0.5, 0.5, 0.25, 0]
    assert found.missing == ["JPEG: 2 of 504 sources", "BPG: 2 of 504 sources"] and set(found.groups) == {"JPEG", "BPG"}


def test_nights_takes_a_split_and_six_votes(tmp_path):
    root = nights_tree(tmp_path / "set")
    assert opened("nights-test", root).opinions.tolist() == [0, 1, 0]
    (val,) = open_datasets(root, split="val")
    assert val.name == "nights-val" and len(val) == 2
    with pytest.raises(DatasetError, match="no item of the split 'train'.*its splits are test, val"):
        open_datasets(root, split="train")


def test_clic_joins_what_was_asked_more_than_once(tmp_path):
    found = opened("clic2021-2afc-valid", clic_tree(tmp_path / "set"))
    assert found.opinions == pytest.approx([1 / 3] * 3)  # one of three prefers b
    os.remove(tmp_path / "set" / "crops" / "1_b.png")
    assert opened("clic2021-2afc-valid", tmp_path / "set").missing == ["2 of 3 questions have their crops"]


def test_a_set_without_its_images_is_refused(tmp_path):
    root = cid22_tree(tmp_path / "set")
    for path in (root / "compressed").rglob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match="none of the 8 images that its table lists"):
        opened("cid22-val", root)
    root = clic_tree(tmp_path / "clic")
    for path in (root / "crops").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="none of the crops"):
        opened("clic2021-2afc-valid", root)


def test_a_run_over_a_new_set(tmp_path):
    from bapps_eval import score
    from cpips.registry import create_metric
    from bapps_eval.run import run

    for name in ("aic4", "konjnd1k", "nights-test"):
        found, _ = run(opened(name, TREES[name](tmp_path / name)), create_metric("mse"), tmp_path / "out")
        assert score(found, 100)["headline"]["score"] > 0.3


@pytest.mark.shared_data
def test_the_remade_kadid_itself(shared_data, tmp_path):
    """One reference of the recovered ones with three images made by the published parameters."""
    source = shared_data / "human" / "kadid10k"
    root = tmp_path / "kadid"
    root.mkdir()
    for name in ("dmos.csv", "ref"):
        (root / name).symlink_to(source / name)
    for level in (1, 3, 5):
        save(noisy(photo(level, 512, 384), 5 * level, level), root / "images" / f"I01_11_{level:02d}.png")
    (found,) = open_datasets(root)
    assert found.name == "kadid10k-remade" and len(found) == 3 and found.missing == ["3 of 10125 images, 1 of 81 references"]
    assert any(re.search("22 jpeg, 16 jpeg.noise, 15 lens, 24 lens.noise", note) for note in found.notes)


def test_the_table_of_sets():
    result = CliRunner().invoke(app, ["datasets", "--json"])
    told = json.loads(result.output)
    assert {each["name"] for each in told} >= set(PUBLISHED) | set(TREES)
    assert all(all(each.values()) and each["task"] in TASKS for each in told)
    text = CliRunner().invoke(app, ["datasets"]).output
    assert all(name in text.replace("\n", "") for name in ("cid22-val", "konjnd1k"))
    for word in ("CID22", "KonJND-1k", "AIC-3", "AIC-4", "NIGHTS", "PieAPP", "CLIC", "RAID", "remade"):
        assert word in KNOWN
