"""Data sets of human judgements: every layout, every refusal by name, packs, and the check of a copy."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bapps_eval.check import check, check_folder
from bapps_eval.dataset import Dataset, DatasetError
from bapps_eval.layouts import bapps, open_datasets, pack, packed
from bapps_eval.layouts.common import read_image
from bapps_eval.layouts.mos import KADID10K_KINDS, PUBLISHED, TID2013_KINDS
from bapps_eval.resize import resize
from eval_trees import (bapps_tree, csiq_tree, kadid10k_tree, live_tree, noisy, photo, pipal_tree, save, save_share,
                        table_tree, tid2013_tree, write_csv)


@pytest.fixture(scope="module")
def bapps_root(tmp_path_factory) -> Path:
    """Not to be changed by tests."""
    return bapps_tree(tmp_path_factory.mktemp("bapps"))


@pytest.fixture
def small(tmp_path) -> Path:
    """A family of three small triplets, to be damaged."""
    return bapps_tree(tmp_path / "data", tasks=["2afc"], families=["cnn"], size=16) / "2afc" / "val" / "cnn"


def only(path: Path, **settings) -> Dataset:
    found = open_datasets(path, **settings)
    assert len(found) == 1
    return found[0]


# ---- BAPPS ----------------------------------------------------------------------------------------------------------


def test_bapps_has_two_tasks(bapps_root):
    two_afc, jnd = open_datasets(bapps_root)
    assert (two_afc.name, two_afc.task, jnd.name, jnd.task) == ("bapps-2afc-val", "2afc", "bapps-jnd-val", "jnd")
    assert two_afc.resize == jnd.resize == "pil-bilinear-64"
    assert two_afc.ids == [f"{family}/{i:06d}" for family in ("cnn", "superres") for i in range(3)]
    assert two_afc.groups == ["cnn"] * 3 + ["superres"] * 3 and two_afc.references == two_afc.ids
    assert two_afc.opinions.dtype == np.float64
    judges = [np.load(bapps_root / "2afc" / "val" / f"{id_.replace('/', '/judge/')}.npy")[0] for id_ in two_afc.ids]
    np.testing.assert_array_equal(two_afc.opinions, np.array(judges, np.float64))
    for opinions in (two_afc.opinions, jnd.opinions):
        assert opinions.min() < 0.5 < opinions.max() and len(set(opinions)) > 2


def test_bapps_images_are_resized_as_the_paper_does(bapps_root):
    two_afc, jnd = open_datasets(bapps_root)
    loaded = two_afc.load(4)
    assert len(loaded) == 3 and len(jnd.load(0)) == 2
    for image, part in zip(loaded, ("ref", "p0", "p1")):
        own = Image.open(bapps_root / "2afc/val/superres" / part / "000001.png")
        own = own.resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(own))
        assert image.dtype == np.uint8 and image.flags.writeable
    whole = open_datasets(bapps_root, resize="none")[0].load(4)
    np.testing.assert_array_equal(whole[2], np.asarray(Image.open(bapps_root / "2afc/val/superres/p1/000001.png")))
    assert whole[0].flags.writeable


@pytest.mark.parametrize("below, names", [
    ("", ["bapps-2afc-val", "bapps-jnd-val"]), ("2afc", ["bapps-2afc-val"]), ("2afc/val", ["bapps-2afc-val"]),
    ("2afc/val/cnn", ["bapps-2afc-val"]), ("jnd", ["bapps-jnd-val"]), ("jnd/val", ["bapps-jnd-val"]),
    ("jnd/val/traditional", ["bapps-jnd-val"])])
def test_bapps_from_any_level(bapps_root, below, names, monkeypatch):
    found = open_datasets(bapps_root / below)
    assert [dataset.name for dataset in found] == names
    monkeypatch.chdir(bapps_root / below)
    assert [dataset.digest for dataset in open_datasets(Path("."))] == [dataset.digest for dataset in found]
    if below == "2afc/val/cnn":
        assert found[0].ids == ["cnn/000000", "cnn/000001", "cnn/000002"]


def test_bapps_splits(bapps_root, tmp_path):
    bapps_tree(tmp_path, tasks=["2afc"], split="train", families=["mix"], count=1, size=16)
    with pytest.raises(DatasetError, match="no split 'val' of BAPPS, but 2afc/train: say which"):
        open_datasets(tmp_path)
    train = only(tmp_path, split="train")
    assert train.name == only(tmp_path / "2afc" / "train").name == "bapps-2afc-train"
    assert train.missing == ["family traditional is absent", "family cnn is absent", "mix has 1 of 56640 triplets"]
    (tmp_path / "2afc" / "train").rename(tmp_path / "2afc" / "mine")
    mine = only(tmp_path / "2afc" / "mine")
    assert mine.name == "bapps-2afc-mine" and not mine.missing and "not a published split" in mine.notes[0]


def test_bapps_says_what_is_missing(bapps_root):
    two_afc, jnd = open_datasets(bapps_root)
    assert two_afc.missing == ["family traditional is absent", "cnn has 3 of 4720 triplets",
                               "superres has 3 of 10856 triplets", "family deblur is absent", "family color is absent",
                               "family frameinterp is absent"]
    assert jnd.missing == ["traditional has 3 of about 4800 pairs", "cnn has 3 of about 4800 pairs"]


def test_bapps_complete_lacks_nothing(small, monkeypatch):
    monkeypatch.setitem(bapps.PUBLISHED, ("2afc", "val"), {"cnn": 3})
    assert only(small).missing == [] and only(small).notes == []
    monkeypatch.setitem(bapps.PUBLISHED, ("2afc", "val"), {"color": 3})
    assert "cnn" in only(small).notes[0]


@pytest.mark.shared_data
def test_bapps_counts_are_those_of_the_published_scores(shared_data):
    with np.load(shared_data / "bapps_scores" / "bapps_2afc_val_scores.npz", allow_pickle=False) as scores:
        counts = {key.split("__")[0]: len(scores[key]) for key in scores if key.endswith("__index")}
    assert counts == bapps.PUBLISHED["2afc", "val"]


def test_order_on_disk_changes_nothing(bapps_root, monkeypatch):
    before = open_datasets(bapps_root)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    for a, b in zip(before, open_datasets(bapps_root)):
        assert a.digest == b.digest and a.paths == b.paths and a.missing == b.missing


def test_hidden_and_foreign_files_are_no_items(small):
    (small / "p0" / "._000000.png").write_bytes(b"resource fork")
    (small / "p0" / "Thumbs.db").write_bytes(b"")
    (small / "judge" / ".DS_Store").write_bytes(b"")
    assert len(only(small)) == 3 and check_folder(small)[0].ok


def break_judge(write):
    def damage(small):
        write(small / "judge" / "000001.npy")
    return damage


def pickled(path):
    np.save(path, np.array([{"share": 0.2}], object), allow_pickle=True)


DAMAGE = {
    "missing judge": (break_judge(Path.unlink),
                      r"judge.000001\.npy is missing, while ref, p0, p1 have 000001.*judge has 2"),
    "missing image": (lambda small: (small / "p1" / "000002.png").unlink(),
                      r"p1.000002\.png is missing.*p1 has 2 files"),
    "one too many": (lambda small: save(photo(1, 16, 16), small / "p0" / "000009.png"),
                     r"ref.000009\.png and .*p1.000009\.png and .*judge.000009\.npy are missing, while p0 has"),
    "no folder": (lambda small: shutil.rmtree(small / "judge"), r"cnn has no folder judge: .* ref, p0, p1, judge"),
    "two of one name": (lambda small: save(photo(1, 16, 16), small / "ref" / "000001.bmp"),
                        r"ref has two files for 000001: 000001\.bmp and 000001\.png"),
    "two numbers": (break_judge(lambda path: np.save(path, np.zeros(2))), r"000001\.npy holds float64 of shape \(2,\)"),
    "no number": (break_judge(lambda path: np.save(path, np.zeros(0))), r"000001\.npy holds float64 of shape \(0,\)"),
    "text": (break_judge(lambda path: np.save(path, np.array(["0.2"]))), r"000001\.npy holds <U3"),
    "whole number": (break_judge(lambda path: np.save(path, np.array([1]))), r"000001\.npy holds int64"),
    "above one": (break_judge(lambda path: save_share(1.2, path)), r"000001\.npy holds 1\.2.*: expected a share"),
    "below zero": (break_judge(lambda path: save_share(-0.2, path)), r"000001\.npy holds -0\.2.*: expected a share"),
    "NaN": (break_judge(lambda path: save_share(np.nan, path)), r"000001\.npy holds nan: expected a share"),
    "pickled": (break_judge(pickled), r"000001\.npy holds pickled Python objects"),
    "cut short": (break_judge(lambda path: path.write_bytes(path.read_bytes()[:-1])), r"000001\.npy is cut short"),
    "too long": (break_judge(lambda path: path.write_bytes(path.read_bytes() + b"\0")), r"000001\.npy is cut short or"),
    "half a header": (break_judge(lambda path: path.write_bytes(path.read_bytes()[:40])), r"000001\.npy is not an \.n"),
    "empty": (break_judge(lambda path: path.write_bytes(b"")), r"000001\.npy is not an \.npy"),
    "not npy": (break_judge(lambda path: path.write_bytes(b"0.8 is what they said")), r"000001\.npy is not an \.npy"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE.keys())
def test_bapps_refuses_and_check_reports(small, damage, message):
    damage(small)
    with pytest.raises(DatasetError, match=message):
        open_datasets(small)
    report, = check_folder(small)
    assert not report.ok and report.problem_count == 1
    with pytest.raises(DatasetError, match=message):
        raise DatasetError(report.problems[0])


@pytest.mark.parametrize("dtype, shape", [("float32", (1,)), ("float64", (1,)), ("float64", ()), (">f8", (1, 1)),
                                          ("float16", (1,))])
def test_shares_read_as_numpy_reads_them(tmp_path, dtype, shape):
    np.save(tmp_path / "a.npy", np.full(shape, 0.6, dtype))
    assert bapps.read_share(tmp_path / "a.npy") == float(np.load(tmp_path / "a.npy").item())


def test_bapps_damaged_images_are_named(small):
    path = small / "p1" / "000001.png"
    path.write_bytes(path.read_bytes()[:-60])
    (small / "ref" / "000002.png").write_bytes(b"not a picture")
    save(photo(1, 18, 16), small / "p0" / "000000.png")
    dataset = only(small)  # opening decodes nothing
    for i, message in enumerate((r"p0.000000\.png has 18x16", r"p1.000001\.png is damaged",
                                 r"ref.000002\.png is not an image")):
        with pytest.raises(DatasetError, match=message):
            dataset.load(i)
    report = check(dataset)
    assert [Path(problem.split(" ")[0]).name for problem in report.problems[:2]] == ["000001.png", "000002.png"]
    assert "differ in size" in report.problems[2] and report.problem_count == 3 and not report.ok
    assert check_folder(small) == [report]


def test_check_collects_from_every_family_and_counts_beyond_its_limit(tmp_path):
    root = bapps_tree(tmp_path, size=16)
    shutil.rmtree(root / "2afc/val/cnn/judge")
    for i in range(3):
        save_share(7, root / f"2afc/val/superres/judge/{i:06d}.npy")
        (root / f"jnd/val/cnn/p1/{i:06d}.png").write_bytes(b"")
    two_afc, jnd = check_folder(root, limit=2)
    assert two_afc.problem_count == 4 and len(two_afc.problems) == 2 and two_afc.items == 0
    assert jnd.problem_count == 3 and len(jnd.problems) == 2 and jnd.groups == {"cnn": 3, "traditional": 3}
    assert jnd.missing and not jnd.ok


def test_check_of_a_whole_copy(bapps_root):
    calls = []
    two_afc, jnd = check_folder(bapps_root, progress=lambda done, total: calls.append((done, total)))
    assert two_afc.ok and jnd.ok and two_afc.items == 6 and two_afc.groups == {"cnn": 3, "superres": 3}
    assert calls == [(i + 1, 18) for i in range(18)] + [(i + 1, 12) for i in range(12)]


# ---- sets of opinion scores -----------------------------------------------------------------------------------------


def test_tid2013(tmp_path):
    dataset = only(tid2013_tree(tmp_path))
    assert (dataset.name, dataset.task, dataset.higher_is_better, dataset.resize) == ("tid2013", "mos", True, "none")
    assert dataset.ids[:3] == ["i01_01_1", "i01_01_5", "i01_08_1"] and dataset.references[0] == "i01"
    assert dataset.groups[:3] == ["additive Gaussian noise"] * 2 + ["Gaussian blur"]
    assert dataset.opinions[0] == 6.01 and dataset.opinions[1] == 2.01
    assert dataset.missing == ["12 of 3000 images, 2 of 25 references"] and "i25 is a synthetic" in dataset.notes[0]
    reference, image = dataset.load(0)
    np.testing.assert_array_equal(reference, photo(1, 64, 48))
    np.testing.assert_array_equal(image, noisy(photo(1, 64, 48), 8, 111))
    assert len(TID2013_KINDS) == 24 and len(KADID10K_KINDS) == 25


def test_tid2013_partial_and_damaged(tmp_path):
    root = tid2013_tree(tmp_path)
    (root / "distorted_images" / "i01_01_1.bmp").unlink()
    assert only(root).missing == ["11 of 3000 images, 2 of 25 references"]
    (root / "reference_images" / "I01.BMP").unlink()
    with pytest.raises(DatasetError, match=r"line 2: i01, the reference of .*i01_01_5\.bmp, is not there"):
        open_datasets(root)
    report, = check_folder(root)
    assert report.problem_count == 5 and report.items == 6
    shutil.rmtree(root / "distorted_images")
    (root / "distorted_images").mkdir()
    with pytest.raises(DatasetError, match="none of the 12 images"):
        open_datasets(root)


@pytest.mark.parametrize("line, message", [
    ("5.5", "line 13: '5.5' has 1 fields: expected 2"), ("five i01_01_1.bmp", "line 13: 'five' is not a finite number"),
    ("nan i01_08_1.bmp", "'nan' is not a finite"),
    ("9.5 i01_08_1.bmp", "9.5 of i01_08_1 is outside of tid2013's scale, 0 to 9"),
    ("5.5 I01_01_1.BMP", "two items are called 'i01_01_1'"), ("5.5 photo.bmp", "photo.bmp is not a name of TID2013")])
def test_tid2013_refuses(tmp_path, line, message):
    root = tid2013_tree(tmp_path)
    with (root / "mos_with_names.txt").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DatasetError, match=message):
        open_datasets(root)
    assert message.split(" ")[-1] in check_folder(root)[0].problems[0]


def test_names_that_differ_in_case_only(tmp_path):
    root = tid2013_tree(tmp_path)
    shutil.copy(root / "distorted_images" / "i01_01_1.bmp", root / "distorted_images" / "I01_01_1.png")
    with pytest.raises(DatasetError, match=r"I01_01_1\.png and .*i01_01_1\.bmp have the same name but for case"):
        open_datasets(root)


def test_kadid10k(tmp_path):
    dataset = only(kadid10k_tree(tmp_path))
    assert dataset.name == "kadid10k" and dataset.higher_is_better  # whatever its column is called
    assert dataset.ids[:2] == ["i01_01_01", "i01_01_03"] and dataset.groups[2] == "contrast change"
    assert dataset.opinions[:2].tolist() == [4, 2] and dataset.references[-1] == "i02"
    assert dataset.missing == ["8 of 10125 images, 2 of 81 references"]
    (tmp_path / "dmos.csv").write_text("dist_img,ref_img,mos\nI01_01_01.png,I01.png,4\n")
    with pytest.raises(DatasetError, match=r"columns dist_img, ref_img, mos: expected .*; dmos missing"):
        open_datasets(tmp_path)


@pytest.mark.parametrize("table", ["csv", "txt", "label"])
def test_csiq(tmp_path, table):
    dataset = only(csiq_tree(tmp_path, table=table))
    assert dataset.name == "csiq" and not dataset.higher_is_better
    assert dataset.ids[:3] == ["1600.awgn.1", "1600.awgn.4", "1600.jpeg2000.1"] and dataset.groups[2] == "jpeg2000"
    assert dataset.opinions[:3].tolist() == [0.2, 0.8, 0.21] and dataset.references[0] == "1600"
    assert dataset.paths[0][1].name == "1600.AWGN.1.png" and dataset.missing == ["8 of 866 images, 2 of 30 references"]
    (tmp_path / "dst_imgs").rename(tmp_path / "dst_imgs_all")  # as people rename it
    assert only(tmp_path).digest == dataset.digest


@pytest.mark.parametrize("text, message", [
    ("image,dst_idx,dst_type,dst_lev,dmos_std,dmos\n1600,1,fog,1,0.1,0.2\n", r"line 2: 1600\.fog\.1 is not a name of CSIQ"),
    ("picture,score\n1600,0.2\n", "no line of headings with image, dst_type, dst_lev and dmos"),
    ("image,dst_type,dst_lev,dmos\n1600,noise,1\n", "line 2: 3 fields, but the headings have 4"),
    (b"\xff\xfe\xfa", "cannot be read as text")], ids=lambda value: None)
def test_csiq_refuses(tmp_path, text, message):
    root = csiq_tree(tmp_path)
    (root / "csiq.DMOS.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=message):
        open_datasets(root)


def test_csiq_spreadsheet(tmp_path, monkeypatch):
    root = csiq_tree(tmp_path)
    wanted = only(root)
    rows = [line.split(",") for line in (root / "csiq.DMOS.csv").read_text().splitlines()]
    (root / "csiq.DMOS.csv").unlink()
    with pytest.raises(DatasetError, match="no table of scores: expected csiq.DMOS.csv"):
        open_datasets(root)
    (root / "csiq.DMOS.xlsx").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DatasetError, match="pip install openpyxl, or save the sheet all_by_image as csiq.DMOS.csv"):
        open_datasets(root)

    def value(cell):  # as a spreadsheet keeps it
        return float(cell) if cell.replace(".", "").isdigit() else cell or None

    cells = [tuple(map(value, row)) for row in rows] + [(None,) * 7]
    sheet = types.SimpleNamespace(iter_rows=lambda values_only: cells)

    class Book(dict):
        def close(self):
            pass

    stub = types.SimpleNamespace(load_workbook=lambda path, **_: Book(all_by_image=sheet))
    monkeypatch.setitem(sys.modules, "openpyxl", stub)
    assert only(root).digest == wanted.digest
    stub.load_workbook = lambda path, **_: Book()
    with pytest.raises(DatasetError, match="not the workbook of CSIQ"):
        open_datasets(root)


@pytest.mark.parametrize("refnames", [False, True])
def test_live(tmp_path, refnames):
    dataset = only(live_tree(tmp_path, refnames=refnames))
    assert dataset.name == "live" and not dataset.higher_is_better
    folders = ("fastfading", "gblur", "jp2k", "jpeg", "wn")
    assert dataset.ids == [f"{folder}/img{n}" for folder in folders for n in (1, 2)]
    assert dataset.references[:2] == ["bikes", "womanhat"] and dataset.groups[0] == "fastfading"
    assert dataset.opinions.tolist() == [41, 42, 31, 32, 1, 2, 11, 12, 21, 22]
    assert dataset.missing == ["10 of 779 images, 2 of 29 references"] and not dataset.notes
    np.testing.assert_array_equal(dataset.load(1)[0], photo(0, 48, 64))


def test_live_not_realigned_and_damaged(tmp_path):
    root = live_tree(tmp_path, realigned=False)
    dataset = only(root)
    assert dataset.opinions[0] == 141 and "not realigned" in dataset.notes[0]
    (root / "wn" / "info.txt").write_text("bikes.bmp img1.bmp 0.5\n")
    with pytest.raises(DatasetError, match=r"wn.info\.txt does not say which reference img2\.bmp has"):
        open_datasets(root)
    (root / "wn" / "info.txt").unlink()
    with pytest.raises(DatasetError, match="neither .*refnames_all.mat nor .*info.txt"):
        open_datasets(root)
    from scipy.io import savemat
    savemat(root / "dmos.mat", {"dmos": np.zeros((1, 981)), "orgs": np.zeros((1, 982))})
    with pytest.raises(DatasetError, match="dmos of 981 entries: LIVE release 2 has dmos of 982"):
        open_datasets(root)
    (root / "dmos.mat").write_bytes(b"no matrix")
    with pytest.raises(DatasetError, match="dmos.mat is not a file of MATLAB"):
        open_datasets(root)
    (root / "dmos.mat").unlink()
    with pytest.raises(DatasetError, match="neither dmos_realigned.mat nor dmos.mat"):
        open_datasets(root)


@pytest.mark.parametrize("split_folders", [False, True])
def test_pipal(tmp_path, split_folders):
    dataset = only(pipal_tree(tmp_path, split_folders=split_folders))
    assert dataset.name == "pipal" and dataset.higher_is_better
    assert dataset.ids == ["a0001_00_00", "a0001_05_00", "a0002_00_00", "a0002_05_00"]
    assert dataset.groups[:2] == ["00", "05"] and dataset.opinions[:2].tolist() == [1500.25, 1450.25]
    assert dataset.missing == ["4 of 23200 images, 2 of 200 references"]


def test_pipal_refuses(tmp_path):
    labels = pipal_tree(tmp_path) / "Train_Label"
    (labels / "A0003.txt").write_text("photo.bmp,1400\n")
    with pytest.raises(DatasetError, match=r"A0003\.txt.*line 1: photo\.bmp is not a name of PIPAL, such as A0001_00_00\.bmp"):
        open_datasets(tmp_path)
    for path in labels.iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"has no \.txt files: unpack the archive again"):
        open_datasets(tmp_path)


@pytest.mark.parametrize("changes, message", [
    ({"task": "4afc"}, "task '4afc' is unknown: choose from 2afc, jnd, mos"), ({"groups": ["a"]}, "has 2 ids, but {'groups': 1}"),
    ({"opinions": np.array([0.5, np.nan])}, "item b: the label is nan: expected a finite number"),
    ({"task": "jnd", "opinions": np.array([1.5, 0.5])}, r"item a: the label is 1\.5: expected a share in \[0,1\]")],
    ids=lambda value: None)
def test_a_data_set_of_ones_own_is_checked(changes, message):
    settings = {"name": "mine", "task": "mos", "ids": ["a", "b"], "groups": ["", ""], "references": ["r", "r"],
                "opinions": np.array([1.0, 2.0]), "load": lambda i: ()}
    with pytest.raises(DatasetError, match=message):
        Dataset(**{**settings, **changes})


def test_a_complete_set_lacks_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "pipal", type(PUBLISHED["pipal"])(4, 2, True))
    assert only(pipal_tree(tmp_path)).missing == []


# ---- tables and kept subsets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task, opinion, higher", [("2afc", "", True), ("jnd", "", True), ("mos", "score", True),
                                                   ("mos", "mos", True), ("mos", "dmos", False)])
def test_table(tmp_path, task, opinion, higher):
    dataset = only(table_tree(tmp_path, task, opinion=opinion))
    assert (dataset.name, dataset.task, dataset.higher_is_better, dataset.resize) == ("table", task, higher, "none")
    assert dataset.opinions.tolist() == [0, 0.25, 0.5, 0.75] and dataset.groups == ["a", "b", "a", "b"]
    assert [image.shape for image in dataset.load(3)] == [(32, 40, 3)] * (3 if task == "2afc" else 2)
    assert len(set(dataset.references)) == 4 and dataset.references[0].startswith("images/")


def test_table_synonyms_ids_and_row_order(tmp_path):
    path = table_tree(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    again = only(path)
    path.write_text("\ufeffOriginal , Dist,MOS,Kind\n" + "\n".join(lines[1:]))
    assert only(path).digest == again.digest
    path.write_text("\n".join([f"{line},{'id' if i == 0 else f'z{9 - i}'}" for i, line in enumerate(lines)]))
    assert only(path).ids == ["z5", "z6", "z7", "z8"] and only(path).opinions[0] == 0.75


@pytest.mark.parametrize("header, message", [
    ("ref,image,group", "columns 'ref', 'image', 'group', which are those of no task .*triplets: reference, p0, p1 and "
     "judge; pairs: p0, p1 and same; scored images: reference, image and mos or dmos"),
    ("p0,p1,judge", "no task"), ("ref,reference,mos", "ref and reference, which mean the same"),
    ("ref,image,image", "two columns 'image'")])
def test_table_columns(tmp_path, header, message):
    (tmp_path / "a.csv").write_text(header + "\na,b,c\n")
    with pytest.raises(DatasetError, match=message):
        open_datasets(tmp_path / "a.csv")


def test_table_with_two_opinions(tmp_path):
    (tmp_path / "a.csv").write_text("ref,image,mos,dmos\na,b,1,2\n")
    with pytest.raises(DatasetError, match="more than one opinion"):
        open_datasets(tmp_path / "a.csv")


@pytest.mark.parametrize("row, message", [
    ("images/ref_0.png,images/none.png,1,a", r"line 6: no such file: .*none\.png"),
    ("images/ref_0.png,,1,a", "line 6: an image's path is empty"),
    ("images/ref_0.png,images/image_0.png,,a", "line 6: '' is not a finite number"),
    ("images/ref_0.png,images/image_0.png,1", "line 6: 3 fields, but the header has 4"),
    ("images/ref_1.png,images/image_0.png,1,a", "two items are called 'images/image_0.png'")])
def test_table_rows(tmp_path, row, message):
    path = table_tree(tmp_path)
    with path.open("a") as stream:
        stream.write(row + "\n")
    with pytest.raises(DatasetError, match=message):
        open_datasets(path)


def test_table_of_shares_outside_their_range(tmp_path):
    path = table_tree(tmp_path, "jnd")
    path.write_text(path.read_text().replace("0.75", "1.75"))
    with pytest.raises(DatasetError, match=r"has the label 1\.75: expected a share"):
        open_datasets(path)
    assert check_folder(path)[0].items == 3


def test_table_that_is_none(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="not a CSV table in UTF-8"):
        open_datasets(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("ref,image,mos\n")
    with pytest.raises(DatasetError, match="has no rows"):
        open_datasets(tmp_path / "a.csv")


def test_subset(tmp_path):
    root = tmp_path / "tid2013"
    save(photo(0, 20, 20), root / "ref" / "I01.png")
    save(photo(1, 20, 20), root / "dist" / "i01_08_1.png")
    write_csv(root / "scores.csv", [["dist", "ref", "distortion_type", "mos", "mapping"],
                                    ["dist/i01_08_1.png", "ref/I01.png", "8", "5.5", "by rank (inferred)"]])
    dataset = only(root)
    assert (dataset.name, dataset.groups, dataset.ids) == ("tid2013-subset", ["Gaussian blur"], ["i01_08_1"])
    assert dataset.notes == ["which score belongs to which image is inferred for 1 of 1 images: "
                             "1 by 'by rank (inferred)'"]


@pytest.mark.shared_data
def test_real_subsets(shared_data):
    tid, live = only(shared_data / "human" / "tid2013"), only(shared_data / "human" / "live")
    assert (tid.name, len(tid), tid.higher_is_better) == ("tid2013-subset", 171, True)
    assert tid.missing == ["171 of 3000 images, 3 of 25 references"] and not tid.notes
    assert len(set(tid.groups)) == 24 and set(tid.groups) == set(TID2013_KINDS)
    assert (live.name, len(live), live.higher_is_better) == ("live-subset", 91, False)
    assert live.missing == ["91 of 779 images, 7 of 29 references"] and "inferred for 31 of 91" in live.notes[0]
    assert set(live.groups) == {"jpeg", "gblur", "fastfading", "wnoise"}
    reference, image = tid.load(0)
    assert reference.shape == image.shape == (384, 512, 3) and (reference != image).any()


# ---- what is no data set --------------------------------------------------------------------------------------------


def test_unknown_folders(tmp_path):
    with pytest.raises(DatasetError, match="no such file or folder"):
        open_datasets(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"no layout that is known \(it is empty\)"):
        open_datasets(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    table_tree(tmp_path / "mine").rename(tmp_path / "mine" / "scores.csv")
    with pytest.raises(DatasetError, match=r"\(it holds mine, notes.txt\); did you mean .*mine\?\n(.|\n)*TID2013 .*m"):
        open_datasets(tmp_path)
    with pytest.raises(DatasetError, match="notes.txt is no data set"):
        open_datasets(tmp_path / "notes.txt")
    with pytest.raises(DatasetError, match="resize rule 'big' is unknown"):
        open_datasets(tmp_path / "mine", resize="big")


# ---- images and sizes -----------------------------------------------------------------------------------------------


def test_images_come_back_exactly(tmp_path):
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([every, every.T, every[::-1]], 2)
    np.testing.assert_array_equal(read_image(save(image, tmp_path / "a.png")), image)
    Image.fromarray(every).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([every] * 3, 2))
    Image.fromarray(np.dstack([image, every])).save(tmp_path / "alpha.png")
    with pytest.raises(DatasetError, match="alpha.png has an alpha channel"):
        read_image(tmp_path / "alpha.png")
    with pytest.raises(DatasetError, match="no such file"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("width, height, expected", [
    (256, 256, (64, 64)), (512, 384, (85, 64)), (384, 512, (64, 85)), (147, 98, (96, 64)), (64, 80, (64, 80)),
    (32, 16, (128, 64)), (65, 999, (64, 983))])
def test_resize_rule(width, height, expected):
    image = photo(0, width, height)
    small = resize(image, "pil-bilinear-64")
    assert small.shape == (*reversed(expected), 3)
    own = image if (width, height) == expected else Image.fromarray(image).resize(expected, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small, np.asarray(own))
    assert resize(image, "none") is image


def test_resize_methods_differ():
    image = noisy(photo(0, 100, 100), 60, 0)
    results = [resize(image, f"pil-{method}-64").tobytes() for method in ("bilinear", "bicubic", "lanczos", "box")]
    assert len(set(results)) == 4


def test_ids_of_a_data_set_are_sorted():
    make = lambda ids: Dataset("d", "mos", ids, ids, ids, np.zeros(len(ids)), load=lambda i: ())
    assert len(make(["a", "b"])) == 2
    for ids in (["a", "a"], ["b", "a"]):
        with pytest.raises(DatasetError, match="sorted and without doubles, but 'a'"):
            make(ids)


# ---- packs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pack_of(bapps_root, tmp_path_factory) -> tuple[Dataset, Path]:
    """Not to be changed by tests."""
    dataset = open_datasets(bapps_root)[0]
    calls = []
    out = pack(dataset, tmp_path_factory.mktemp("packs") / "pack", workers=2,
               progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 6) for i in range(6)] and os.listdir(out.parent) == ["pack"]
    return dataset, out


@pytest.fixture
def copy(pack_of, tmp_path) -> Path:
    """A pack to be damaged."""
    return Path(shutil.copytree(pack_of[1], tmp_path / "copy"))


def test_packed_equals_unpacked(pack_of):
    source, out = pack_of
    for resize_ in (None, "pil-bilinear-64"):
        again = only(out, resize=resize_)
        assert again.digest == source.digest
        for name in ("name", "task", "ids", "groups", "references", "resize", "missing", "notes", "higher_is_better"):
            assert getattr(again, name) == getattr(source, name), name
        np.testing.assert_array_equal(again.opinions, source.opinions)
    for i in range(len(source)):
        for a, b in zip(source.load(i), again.load(i), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype and b.flags.writeable
    again.load(0)[0][:] = 0  # a copy: the pack stays as it is
    np.testing.assert_array_equal(again.load(0)[0], source.load(0)[0])
    report, = check_folder(out)
    assert report.ok and report.items == 6 and report.missing == list(source.missing)


def test_pack_of_a_subset_says_so(bapps_root, tmp_path):
    source = open_datasets(bapps_root)[1].subset([5, 0, 3])
    again = only(pack(source, tmp_path / "pack"))
    assert again.digest == source.digest and "3 of 6 items were left out" in again.missing[-1]
    np.testing.assert_array_equal(again.load(2)[1], source.load(2)[1])
    assert check(source).ok and check(again.subset([1])).ok


def test_pack_refuses_another_resize_rule(pack_of):
    for rule in ("none", "pil-bicubic-64"):
        with pytest.raises(DatasetError, match=f"with resize rule 'pil-bilinear-64', and '{rule}' was asked for"):
            open_datasets(pack_of[1], resize=rule)


def test_pack_needs_one_size_room_and_a_free_name(small, tmp_path, monkeypatch):
    dataset = only(small)
    with pytest.raises(DatasetError, match="is there already"):
        pack(dataset, small)
    with pytest.raises(DatasetError, match="no folder"):
        pack(dataset, tmp_path / "none" / "pack")
    for part in ("ref", "p0", "p1"):
        save(photo(3, 130, 65), small / part / "000001.png")
    with pytest.raises(DatasetError, match="item cnn/000001 has images of 128x64 .* before it 64x64: pack only sets"):
        pack(dataset, tmp_path / "pack")
    assert os.listdir(tmp_path) == ["data"]  # nothing half done is left
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda path: usage._replace(free=30_000))
    with pytest.raises(DatasetError, match="needs 0.00 GB, but .* free"):
        pack(dataset, tmp_path / "pack")
    assert os.listdir(tmp_path) == ["data"]


def test_pack_that_fails_leaves_nothing(small, tmp_path):
    (small / "p1" / "000002.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="000002.png"):
        pack(only(small), tmp_path / "pack")
    assert os.listdir(tmp_path) == ["data"]


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


PACK_DAMAGE = {
    "format": (lambda pack: edit(pack / "pack.json", format=9), "pack of format 9, this version reads 1"),
    "json": (lambda pack: (pack / "pack.json").write_text("{"), r"pack\.json is damaged"),
    "keys": (lambda pack: edit(pack / "pack.json", shape=None), r"pack\.json is damaged"),
    "shape": (lambda pack: edit(pack / "pack.json", shape=[6, 3, 64, 63, 3]), r"images\.npy holds uint8 of shape"),
    "count": (lambda pack: edit(pack / "pack.json", shape=[5, 3, 64, 64, 3]), r"pack\.json is damaged"),
    "no items": (lambda pack: (pack / "items.parquet").unlink(), r"items\.parquet is missing"),
    "no pixels": (lambda pack: (pack / "images.npy").unlink(), r"images\.npy is missing"),
    "other items": (lambda pack: (pack / "items.parquet").write_bytes(b"PAR1"), r"items\.parquet is damaged"),
    "cut short": (lambda pack: os.truncate(pack / "images.npy", 3000), r"images\.npy is cut short or damaged"),
    "too long": (lambda pack: (pack / "images.npy").open("ab").write(b"1") and None, r"images\.npy holds"),
}


@pytest.mark.parametrize("damage, message", PACK_DAMAGE.values(), ids=PACK_DAMAGE.keys())
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_pack_refuses_what_was_damaged(copy, damage, message):
    damage(copy)
    with pytest.raises(DatasetError, match=message):
        open_datasets(copy)


def test_pack_of_other_labels(copy):
    about = json.loads((copy / "pack.json").read_text())
    edit(copy / "pack.json", dataset={**about["dataset"], "digest": "0" * 64})
    with pytest.raises(DatasetError, match="are not of one data set"):
        open_datasets(copy)
    assert not check_folder(copy)[0].ok


def test_check_reads_the_pixels_of_a_pack(copy):
    with (copy / "images.npy").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    report = check(only(copy))  # opening does not notice
    assert not report.ok and "images.npy is damaged (its SHA-256" in report.problems[0]
