"""What is handed out: both archives, what is in them, and the types of the public face."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
from test_regression import PROJECT

ROOT = Path(__file__).resolve().parents[1]
LITE = "weights/codecs/cpips-lite.safetensors"  # the one whole codec that the wheel holds


def call(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "cpips"  # setuptools writes beside what it builds
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (not name.startswith(("tests/", "benchmarks/", "weights/codecs/")) or name == LITE) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    call("build", "--no-isolation", "-o", str(out), ".", cwd=source)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_archives_pass_the_registrys_check(archives):
    pytest.importorskip("twine")
    assert call("twine", "check", "--strict", *map(str, archives)).count("PASSED") == 2


@pytest.mark.slow
def test_the_wheel_holds_what_it_should_and_nothing_else(archives):
    source, wheel = archives
    assert wheel.name.endswith("-py3-none-any.whl") and wheel.stat().st_size < 100e6  # pure, and within the registry's limit
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cpips", "bapps_eval"}
    for package in ("cpips", "bapps_eval"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert here == {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")
                        and not name.startswith(("cpips/weights/", "cpips/configs/", "cpips/examples/"))}
        assert f"{package}/py.typed" in names
    for path in (ROOT / "weights").glob("*.*"):
        assert f"cpips/weights/{path.name}" in names
    assert [name for name in names if "codecs" in name] == [f"cpips/{LITE}"]
    for part, suffix in (("configs", "toml"), ("examples", "py")):
        assert {f"cpips/{part}/{path.name}" for path in (ROOT / part).glob(f"*.{suffix}")} <= names
    assert not [name for name in names if name.endswith((".pth", ".pt", ".pkl"))]
    in_source = {name.partition("/")[2] for name in tarfile.open(source).getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "constraints.txt", "setup.cfg", "pyproject.toml"} <= in_source
    assert not [name for name in in_source if name.startswith(("tests", "benchmarks"))]


@pytest.mark.slow
def test_the_wheel_brings_its_pytest_plugin_to_a_project_of_its_own(archives, tmp_path):
    """In an environment with the wheel's files, and with the other packages of this one."""
    call("venv", "--without-pip", str(tmp_path / "venv"))
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(archives[1]).extractall(site)
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    (tmp_path / "test_image.py").write_text(textwrap.dedent(PROJECT) + textwrap.dedent(f"""
        def test_render_is_of_the_wheel():
            import cpips
            assert cpips.__file__.startswith({str(site)!r})
        """))
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DAMAGE", "PYTEST_ADDOPTS")}
    command = [tmp_path / "venv" / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", "-k", "render"]
    for arguments, damage, said in ((["--update-golden"], {}, "3 passed"), ([], {"DAMAGE": "1"}, "2 failed, 1 passed")):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=env | damage, capture_output=True, text=True)
        assert said in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "golden-differences.html").read_text().count("data:image/webp;base64,") >= 6


@pytest.mark.slow
def test_the_public_face_passes_a_strict_type_checker(tmp_path):
    """setup.cfg names the files and the strictness; the checker reads them with what is installed."""
    pytest.importorskip("mypy")
    call("mypy", "--cache-dir", str(tmp_path))


def test_every_document_of_a_release_is_there():
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "RELEASE.md", "SECURITY.md"):
        assert (ROOT / name).stat().st_size > 500, name
