"""KADID-10k's opinion scores as labels."""

from collections import Counter
from dataclasses import FrozenInstanceError

import pytest

from cpips.training.calibration.opinion_labels import HELD_OUT, LabelError, read_opinions
from cpips.errors import CpipsError

DMOS = """dist_img,ref_img,type,level,dmos,var,ref_from
I01_01_01.png,I01.png,1,1,4.57,0.496,exact
I01_25_05.png,I01.png,25,5,1.0,0.1,exact
I02_01_01.png,I02.png,1,1,5,0.496,lens+noise
"""
MEANS = """type,level,dmos_mean,dmos_std,n
1,1,4.6122,0.1296,81
25,5,2.5,0.1,81
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "dmos.csv").write_text(DMOS)
    (tmp_path / "condition_means.csv").write_text(MEANS)
    return tmp_path


def test_labels_are_those_of_the_tables(folder):
    labels = read_opinions(folder)
    assert labels.dmos == {"I01_01_01.png": 4.57, "I01_25_05.png": 1.0, "I02_01_01.png": 5.0}
    assert labels.references == {"I01_01_01.png": "I01", "I01_25_05.png": "I01", "I02_01_01.png": "I02"}
    assert labels.ref_from == {"I01": "exact", "I02": "lens+noise"}
    assert labels.conditions == {(1, 1): 4.6122, (25, 5): 2.5}


def test_labels_cannot_be_changed(folder):
    labels = read_opinions(folder)
    with pytest.raises(FrozenInstanceError):
        labels.dmos = {}
    with pytest.raises(TypeError):
        labels.dmos["I01_01_01.png"] = 1.0


def test_tables_of_a_spreadsheet_are_read(folder):
    """With a byte order mark, other line ends, spaces, and columns in another order."""
    rows = [line.split(",")[::-1] for line in DMOS.split()]
    (folder / "dmos.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(" ,".join(row) for row in rows).replace(
        "ref_from ,var ,dmos ,level ,type ,ref_img ,", "ref_from,var,dmos,level,type,ref_img,").encode())
    assert read_opinions(folder).dmos["I01_01_01.png"] == 4.57


@pytest.mark.parametrize("name", ["dmos.csv", "condition_means.csv"])
def test_missing_and_empty_files(folder, name):
    header = (folder / name).read_text().splitlines()[0]
    for content, said in ((header, "no lines"), ("", "got an empty file"), (b"\xff\xfe\x00", "not a CSV table in UTF-8")):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(LabelError, match=f"{name} .*{said}"):
            read_opinions(folder)
    (folder / name).unlink()
    with pytest.raises(LabelError, match=f"no such file: .*{name}; expected a folder with dmos.csv"):
        read_opinions(folder)


@pytest.mark.parametrize("column", ["dist_img", "ref_img", "type", "level", "dmos", "ref_from"])
def test_a_missing_column_is_named(folder, column):
    (folder / "dmos.csv").write_text(DMOS.replace(column, "other", 1))
    with pytest.raises(LabelError, match=f"dmos.csv has no column {column}: expected dist_img, .*; got .*other"):
        read_opinions(folder)


@pytest.mark.parametrize("old, new, said", [
    ("I02_01_01.png,I02", "I01_01_01.png,I01", "line 4: I01_01_01.png is there for the second time"),
    ("4.57", "nan", "line 2: dmos is 'nan': expected a number from 1"),
    ("4.57", "", "line 2: dmos is ''"),
    ("4.57", "inf", "dmos is 'inf'"),
    ("4.57", "5.01", "dmos is '5.01'"),
    ("4.57", "0.99", "dmos is '0.99'"),
    (",25,5,", ",26,5,", "line 3: type is '26': expected an integer from 1 to 25"),
    (",25,5,", ",25,0,", "level is '0': expected an integer from 1 to 5"),
    (",25,5,", ",25,x,", "level is 'x'"),
    (",25,5,", ",24,5,", "line 3: 'I01_25_05.png' is not the image of 'I01.png', type 24, level 5: expected I01_24_05.png"),
    ("I02.png", "I03.png", "'I02_01_01.png' is not the image of 'I03.png'"),
    ("0.1,exact", "0.1,jpeg", "line 3: ref_from of I01 is 'jpeg', but 'exact' in lines before"),
    ("0.496,exact", "exact", "line 2: 6 fields, but the header has 7"),
    ("0.496,exact", "0.496,exact,1", "line 2: 8 fields, but the header has 7"),
])
def test_wrong_lines_of_images(folder, old, new, said):
    assert old in DMOS
    (folder / "dmos.csv").write_text(DMOS.replace(old, new, 1))
    with pytest.raises(CpipsError, match=said):
        read_opinions(folder)


@pytest.mark.parametrize("old, new, said", [
    ("25,5", "1,1", "line 3: type 1, level 1 is there for the second time"),
    ("4.6122", "NaN", "line 2: dmos_mean is 'NaN'"),
    ("25,5", "25,6", "level is '6'"),
    ("dmos_mean", "mean", "condition_means.csv has no column dmos_mean"),
])
def test_wrong_lines_of_conditions(folder, old, new, said):
    (folder / "condition_means.csv").write_text(MEANS.replace(old, new, 1))
    with pytest.raises(CpipsError, match=said):
        read_opinions(folder)


@pytest.mark.shared_data
def test_published_scores(shared_data):
    labels = read_opinions(shared_data / "human" / "kadid10k")
    assert len(labels.dmos) == len(labels.references) == 10_000 and len(labels.conditions) == 125
    assert labels.dmos["I01_01_01.png"] == 4.57 and labels.conditions[1, 1] == 4.6122
    assert set(Counter(labels.references.values()).values()) == {125} and len(labels.ref_from) == 80
    assert set(labels.references.values()) == set(labels.ref_from)


@pytest.mark.shared_data
def test_references_held_out_are_the_best_ones(shared_data):
    labels = read_opinions(shared_data / "human" / "kadid10k")
    assert len(set(HELD_OUT)) == 10
    assert Counter(labels.ref_from[name] for name in HELD_OUT) == {"exact": 3, "lens+noise": 7}
