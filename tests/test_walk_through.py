"""The page that adds a method is followed to the letter, on a copy of the repository."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/add_a_method.md"
BLOCK = re.compile(r"(?:^`([\w/.]+)`\n\n)?^```(python|diff)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def follow(page: str, root: Path) -> list[str]:
    """Make the files and changes of a page; return the files that it touched."""
    touched: list[str] = []
    for name, language, block in BLOCK.findall(page):
        if name:
            touched.append(name)
        file = root / touched[-1]
        if language == "python":
            assert not file.exists()
            file.write_text(block, encoding="utf-8")
            continue
        lines = block.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        content = file.read_text(encoding="utf-8")
        # The first of them: a changelog has the heading once a version.
        assert old in content, f"{file} has not:\n{old}"
        file.write_text(content.replace(old, new, 1), encoding="utf-8")
    return touched


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    root = tmp_path_factory.mktemp("followed")
    left_out = shutil.ignore_patterns("__pycache__", "results")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=left_out)
    for file in ("CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / file, root)
    return root, follow(PAGE.read_text(encoding="utf-8"), root)


def test_it_touches_five_files_and_no_core(followed):
    _, touched = followed
    assert touched == [
        "src/coadapt/inits/milora.py",
        "src/coadapt/inits/__init__.py",
        "tests/test_statistical_inits.py",
        "src/coadapt/recipes/thanora.py",
        "CHANGELOG.md",
    ]


def test_the_method_works_and_passes_its_family_s_tests(followed):
    root, _ = followed
    tests = [f"{root}/tests/test_statistical_inits.py", f"{root}/tests/test_recipe.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    chosen = ["-k", "milora or methods_are_listed", "-p", "no:xdist"]
    environment = {"PYTHONPATH": f"{root}/src:{root}", "PATH": ""}
    done = subprocess.run(
        [*command, *chosen], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    # Five weights and statistics, the triplets, and the row: parsed, found, trained, exported.
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 10
