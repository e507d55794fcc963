"""What users install: the wheel, the source distribution and an editable checkout all give the same package."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"zfabric": "zfabric", "patterns": "zfabric/patterns", "examples": "zfabric/examples"}
"Folders of the checkout and where each is installed."

IMPORTS = """
import importlib.metadata, pathlib, sys
import zfabric, zfabric.patterns, zfabric.examples.telemetry
for module in (zfabric, zfabric.patterns, zfabric.examples.telemetry):
    assert pathlib.Path(module.__file__).resolve().is_relative_to(sys.argv[1]), module.__file__
assert "patterns" not in sys.modules
points = importlib.metadata.distribution("zfabric").entry_points
assert {(point.group, point.name) for point in points} == {
    ("console_scripts", "zfabric"), ("pytest11", "zfabric"), ("zfabric.stores", "memory"), ("zfabric.stores", "sqlite")
}
for point in points:
    point.load()
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that must succeed; returns what it printed."""
    outcome = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, f"{command} failed\n{outcome.stdout}\n{outcome.stderr}"
    return outcome.stdout


def make_environment(path: Path) -> Path:
    """Create an environment that sees our dependencies, but not our own editable install; returns its Python.

    A path that a `.pth` file adds is searched for packages only: the `.pth` of our own install is not read.
    """
    venv.create(path, with_pip=False, symlinks=os.name != "nt")
    python = path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", script, cwd=path).strip())
    packages.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def install(python: Path, *what: str | Path, cwd: Path) -> None:
    """Install into that environment, without touching the network."""
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
    run(*pip, "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", *what, cwd=cwd)


def shipped_files() -> set[str]:
    """What a wheel must hold, by its path in the wheel."""
    return {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, so that no leftover of a former build gets into ours, nor ours into it."""
    copy = tmp_path_factory.mktemp("checkout") / "zfabric"
    left_out = shutil.ignore_patterns(".git", ".venv", ".tox", ".*_cache", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out)
    return copy


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=checkout)
    return folder


def test_wheel_holds_every_file(distributions: Path) -> None:
    """Every module and data file is in the wheel, also through the source distribution; nothing else is."""
    (wheel,) = distributions.glob("zfabric-*-py3-none-any.whl")

    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert names == shipped_files()
    assert "zfabric/py.typed" in names


def test_sdist_holds_what_a_packager_needs(distributions: Path) -> None:
    """The source distribution has the licence, the tests, the documentation and the build files."""
    (archive,) = distributions.glob("zfabric-*.tar.gz")

    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}

    expected = {
        ".ci/run",
        ".ci/tests",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "docs/conf.py",
        "pytest.ini",
        "setup.cfg",
        "tox.ini",
    }
    assert expected - names == set()
    assert {f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")} - names == set()


def test_wheel_works(distributions: Path, tmp_path: Path) -> None:
    """Installed from the wheel, every part imports, entry points load and the command answers."""
    python = make_environment(tmp_path / "venv")
    (wheel,) = distributions.glob("*.whl")

    install(python, wheel, cwd=tmp_path)

    run(python, "-W", "error", "-c", IMPORTS, tmp_path / "venv", cwd=tmp_path)
    assert "Usage" in run(python.parent / "zfabric", "--help", cwd=tmp_path)


def test_editable_install_works(checkout: Path, tmp_path: Path) -> None:
    """Installed with `pip install -e .`, the same imports work, and lead to the checkout."""
    python = make_environment(tmp_path / "venv")

    install(python, "--editable", checkout, cwd=tmp_path)

    run(python, "-c", IMPORTS, checkout, cwd=tmp_path)
    run(python, "-c", IMPORTS, checkout, cwd=checkout)


def test_base_needs_seven_distributions() -> None:
    """A plain install stays small; everything else is an extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    requirements = config["options"]["install_requires"].split()

    names = {line.partition(">=")[0] for line in requirements if ">=" in line}

    assert names == {"click", "lark", "msgpack", "msgspec", "pyzmq", "rich", "zeroconf"}
