"""Whichever way the same pixels come, they are the same image; whatever else comes is an error of cpips' own."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

import cpips
from cpips import CPIPS, CpipsError, ImageError
from cpips.batch import read_table, score_pairs, score_table
from cpips.encoders import LITE, AnalysisTransform
from cpips.images import decode

QUICK = settings(max_examples=12, deadline=None, derandomize=True, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SIDES = st.integers(1, 24)


@st.composite
def pictures(draw, count: int = 2) -> np.ndarray:
    """``(count,H,W,3)`` uint8: of one colour, of few, or of any."""
    shape = (count, draw(SIDES), draw(SIDES), 3)
    return draw(npst.arrays(np.uint8, shape, elements=st.integers(0, 255), fill=st.integers(0, 255)))


@pytest.fixture(scope="module")
def metric():
    return CPIPS(AnalysisTransform.random(N=4, M=6, architecture=LITE), form="local", taps=("gdn2", "y"))


def png(array: np.ndarray, folder, name: str):
    Image.fromarray(array).save(folder / name)
    return folder / name


def content(array: np.ndarray) -> bytes:
    Image.fromarray(array).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None]


WAYS = {  # of one (H,W,3) uint8 array to an image
    "uint8 tensor": lambda a, folder: tensor(a).contiguous(),
    "float32 tensor": lambda a, folder: tensor(a).contiguous().float() / 255,
    "channels_last": lambda a, folder: (tensor(a).float() / 255).contiguous(memory_format=torch.channels_last),
    "turned strides": lambda a, folder: tensor(a).mT.contiguous().mT,
    "part of a larger one": lambda a, folder: torch.nn.functional.pad(tensor(a), (3, 2, 1, 4))[..., 1:-4, 3:-2],
    "array": lambda a, folder: a,
    "float32 array": lambda a, folder: a.astype(np.float32) / np.float32(255),
    "Fortran array": lambda a, folder: np.asfortranarray(a),
    "backward array": lambda a, folder: a[::-1, ::-1].copy()[::-1, ::-1],
    "big-endian array": lambda a, folder: (a.astype(np.float32) / np.float32(255)).astype(">f4"),
    "batch of arrays": lambda a, folder: a[None],
    "PIL": lambda a, folder: Image.fromarray(a),
    "PIL with alpha": lambda a, folder: Image.fromarray(np.dstack([a, np.full_like(a[..., 0], 255)])).convert("RGB"),
    "path": lambda a, folder: png(a, folder, "a.png"),
    "text": lambda a, folder: str(png(a, folder, "a.png")),
    "bytes": lambda a, folder: decode(content(a))[None],
    "list of an array": lambda a, folder: [a],
    "list of (3,H,W)": lambda a, folder: [tensor(a)[0]],
    "tuple of a path": lambda a, folder: (png(a, folder, "a.png"),),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_pixels_are_the_same_image(way, metric, tmp_path):
    @QUICK
    @given(pictures())
    def check(arrays):
        x, y = (tensor(array) for array in arrays)
        given_x = WAYS[way](arrays[0], tmp_path)
        assert metric(given_x, x).item() == 0 and metric(x, given_x).item() == 0
        got, expected = metric(given_x, y), metric(x, y)
        assert got.shape == (1,) and torch.allclose(got, expected, rtol=1e-5, atol=1e-9)
        assert torch.allclose(metric.map(given_x, y), metric.map(x, y), rtol=1e-5, atol=1e-9)
        assert torch.allclose(metric.distance(metric.embed(given_x), metric.embed(y)), expected, rtol=1e-5, atol=1e-9)

    check()


@QUICK
@given(pictures(4))
def test_identity_symmetry_and_independence_of_the_batch(metric, arrays):
    x, y = torch.from_numpy(arrays).permute(0, 3, 1, 2).split(2)
    distance = metric(x, y)
    assert metric(x, x.clone()).eq(0).all() and (distance >= 0).all() and distance.isfinite().all()
    assert torch.equal(metric(y, x), distance)
    alone = torch.cat([metric(a[None], b[None]) for a, b in zip(x, y)])
    assert torch.allclose(distance, alone, rtol=1e-5, atol=1e-7)
    assert torch.allclose(metric(x.flip(0), y.flip(0)), distance.flip(0), rtol=1e-5, atol=1e-7)
    assert torch.equal(metric.distances(list(x), list(y)), alone)


def test_pairs_of_mixed_sizes_in_order(metric):
    x = [torch.rand(3, *size) for size in ((8, 9), (33, 20), (8, 9), (1, 1))]
    y = [torch.rand_like(image) for image in x]
    got = metric.distances(x, y)
    assert torch.equal(got, torch.cat([metric(a[None], b[None]) for a, b in zip(x, y)])) and got.shape == (4,)
    arrays = [(image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for image in x]
    batches = [torch.from_numpy(array).permute(2, 0, 1)[None] for array in arrays]
    assert torch.equal(metric.distances(arrays, batches), torch.zeros(4))
    x[1].requires_grad_()
    metric.distances(x, y).sum().backward()
    assert torch.isfinite(x[1].grad).all()


@pytest.mark.parametrize(("x", "y", "words"), [
    (torch.rand(2, 3, 8, 8), [torch.rand(3, 8, 8)] * 2, "x is a Tensor: expected a list"),
    ([torch.rand(3, 8, 8)], "img.png", "y is a str: expected a list"),
    ([torch.rand(3, 8, 8)], [], "1 and 0 images"),
    ([], [], "0 and 0 images"),
    ([torch.rand(3, 8, 8)] * 2, [torch.rand(3, 8, 8), torch.rand(3, 8, 9)], "pair 1: .*8x8 and 9x8"),
    ([torch.rand(2, 3, 8, 8)], [torch.rand(2, 3, 8, 8)], "pair 0: .*holds 2 images"),
], ids=["tensor", "path", "unequal", "none", "sizes", "batches"])
def test_lists_that_are_refused(metric, x, y, words):
    with pytest.raises(ImageError, match=words):
        metric.distances(x, y)


@settings(QUICK, max_examples=6)
@given(st.lists(pictures(), min_size=1, max_size=4))
def test_tables_and_streams_of_pairs_give_the_numbers_of_the_call(metric, tmp_path, rows):
    expected = [metric(*(tensor(array) for array in row)).item() for row in rows]
    names = [[png(array, tmp_path, f"{i}-{side}.png").name for side, array in enumerate(row)] for i, row in enumerate(rows)]
    table, out = tmp_path / "pairs.csv", tmp_path / "scores.csv"
    table.write_text("ref,img\n" + "".join(f"{ref},{img}\n" for ref, img in names))
    score_table(read_table(table), metric, out, batch_size=2, workers=1, force=True)
    lines = out.read_text().splitlines()
    column = lines[0].split(",").index("distance")
    assert [float(line.split(",")[column]) for line in lines[1:]] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    for ways in ("array", "PIL", "uint8 tensor"):
        pairs = [tuple(WAYS[ways](array, tmp_path) for array in row) for row in rows]
        found = [result.distance for result in score_pairs(pairs, metric, batch_size=2, workers=1)]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9)


# ---- what is no image -----------------------------------------------------------------------------------------------

DTYPES = st.one_of(npst.boolean_dtypes(), npst.integer_dtypes(), npst.unsigned_integer_dtypes(), npst.floating_dtypes(),
                   npst.complex_number_dtypes(), npst.datetime64_dtypes(), npst.unicode_string_dtypes())
ARRAYS = DTYPES.flatmap(lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)))
TENSOR_TYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
                torch.complex64]
TENSORS = st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype),
                    st.lists(st.integers(0, 4), max_size=5), st.sampled_from(TENSOR_TYPES))
ATOMS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=40),
                  st.just("x" * 5000), st.just("a\0b"), st.just(object()), ARRAYS, TENSORS)
ANYTHING = st.one_of(ATOMS, st.lists(ATOMS, max_size=3), st.tuples(ATOMS, ATOMS), st.dictionaries(st.text(), ATOMS, max_size=2))


@settings(QUICK, max_examples=80)
@given(ANYTHING)
def test_anything_is_an_image_or_an_error_of_cpips(metric, tmp_path, monkeypatch, thing):
    monkeypatch.chdir(tmp_path)  # no text is the name of a file here
    for call in (lambda: metric(thing, thing), lambda: metric.pairwise(thing).diagonal(),
                 lambda: metric.distances([thing], [thing]), lambda: metric.distances(thing, thing)):
        try:
            distance = call()
        except CpipsError as error:
            assert len(str(error)) > 10
        else:
            assert distance.dim() == 1 and distance.eq(0).all()


@settings(QUICK, max_examples=60)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_content_of_a_file_is_an_image_or_an_error_of_cpips(metric, tmp_path, junk, at):
    whole = content(np.arange(75, dtype=np.uint8).reshape(5, 5, 3))
    for data in (junk, whole[:at], whole[:at] + junk + whole[at + len(junk):]):
        (tmp_path / "image.png").write_bytes(data)
        for call in (lambda: metric.embed(tmp_path / "image.png"), lambda: metric.embed(decode(data)[None])):
            try:
                assert len(call()) == 1
            except ImageError as error:
                assert "image" in str(error)


def test_a_missing_file_is_both_errors(metric, tmp_path):
    """What Python calls it, and one of cpips."""
    for kind in (FileNotFoundError, ImageError):
        with pytest.raises(kind, match="no such file"):
            metric.embed(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        cpips.load_image("x" * 5000)
