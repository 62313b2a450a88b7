"""kernels/ must import as psychecore.kernels from a wheel and from an editable install, wherever one stands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGES = {"psychecore": "psychecore", "kernels": "psychecore/kernels"}  # folder in the tree: folder installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # from a copy: building in the tree leaves build/lib there, and what lies in it goes into the next wheel
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(REPO / name, source)
    for name in PACKAGES:
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    result = subprocess.run([*command, str(target), str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return next(target.glob("psychecore-*.whl"))


def test_the_wheel_holds_the_library_the_kernels_and_the_typing_mark(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert "psychecore/kernels/__init__.py" in names
    assert {name for name in names if name.endswith(".py")} == {
        f"{installed}/{path.relative_to(REPO / folder).as_posix()}"
        for folder, installed in PACKAGES.items()
        for path in (REPO / folder).rglob("*.py")
    }
    assert "psychecore/py.typed" in names
    assert {name for name in names if name.endswith(".html")} == {
        path.relative_to(REPO).as_posix() for path in (REPO / "psychecore").rglob("*.html")
    }
    assert "psychecore/curate/review.html" in names
    assert {name.split("/")[0] for name in names} == {"psychecore"}


def test_kernels_import_from_the_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert kernels_file(cwd=tmp_path, python_path=str(site)) == site / "psychecore" / "kernels" / "__init__.py"


def test_kernels_import_from_the_editable_install_in_any_directory(tmp_path: Path) -> None:
    assert kernels_file(cwd=tmp_path, python_path="") == REPO / "kernels" / "__init__.py"


def kernels_file(*, cwd: Path, python_path: str) -> Path:
    """Where a fresh interpreter in `cwd` finds psychecore.kernels."""
    command = [sys.executable, "-c", "import psychecore.kernels; print(psychecore.kernels.__file__)"]
    environment = {**os.environ, "PYTHONPATH": python_path}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())
