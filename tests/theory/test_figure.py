"""The example's numbers against the theory, its picture's bytes, and the page's code."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from coadapt.theory import LinearGaussian
from tests.reference.slow_theory import correlation_given, information, joint_covariance

ROOT = Path(__file__).parents[2]
CHANNEL = 0.5 * np.log(5)  # of a row of length 1 with noise variance 0.25


@pytest.fixture(scope="module")
def figure():
    spec = importlib.util.spec_from_file_location(
        "theory_figure", ROOT / "examples/theory/figure.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["theory_figure"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["theory_figure"]


@pytest.fixture(scope="module")
def found(figure):
    return figure.accounts(draws=3, seed=0, ranks=[0, 1, 5, 8], tasks=[1, 4, 12])


def test_directions_have_the_cosines_told(figure):
    generator = np.random.default_rng(0)
    cosines = []
    for _ in range(200):
        tasks = figure.directions(5, 0.5, generator)
        np.testing.assert_allclose(np.linalg.norm(tasks, axis=1), 1)
        cosines.append((tasks @ tasks.T)[np.triu_indices(5, 1)].mean())
    error = np.std(cosines) / np.sqrt(200)
    assert np.mean(cosines) == pytest.approx(0.5, abs=4 * error + 0.02)
    unrelated = figure.directions(20, 0.0, generator)
    np.testing.assert_allclose(unrelated @ unrelated.T, np.eye(20), atol=1e-12)


def test_encoders_read_what_their_names_say(figure):
    generator = np.random.default_rng(1)
    tasks = figure.directions(5, 0.5, generator)
    for encoder, shares in [(figure.span, 1.0), (figure.misaligned, 0.0)]:
        rows = encoder(tasks, generator)
        np.testing.assert_allclose(rows @ rows.T, np.eye(5), atol=1e-10)
        np.testing.assert_allclose(((tasks @ rows.T) ** 2).sum(axis=1), shares, atol=1e-9)
    rows = figure.at_random(tasks, generator)
    np.testing.assert_allclose(rows @ rows.T, np.eye(5), atol=1e-10)
    first = figure.of_rank(1)(tasks, generator)
    others = np.random.default_rng(2).normal(size=(500, 20))
    power = ((tasks @ figure.unit(others).T) ** 2).sum(axis=0)
    assert ((tasks @ first.T) ** 2).sum() > power.max()  # no direction carries more of them


def test_accounts_add_up_to_the_bound(figure, found):
    generators = [np.random.default_rng([0, draw]) for draw in range(3)]
    models = [
        LinearGaussian(
            np.eye(20),
            figure.directions(5, 0.5, g).T,
            np.full(5, 0.01),
            np.zeros((0, 20)),
            1.0,
        )
        for g in generators
    ]
    redundancy = np.mean([correlation_given(joint_covariance(m), range(5)) for m in models])
    for rank, one in found["ranks"].items():
        assert one.bound == pytest.approx(rank * CHANNEL + redundancy, abs=1e-6)
    for one in found["unrelated"].values():
        assert one.bound == pytest.approx(4 * CHANNEL, abs=1e-9)  # TC is 0
    by_name = list(found["encoders"].values())
    assert by_name[0].bound == pytest.approx(5 * CHANNEL + redundancy)
    assert by_name[1].bound == pytest.approx(2.5 * np.log(1 + 9 / 0.25) + redundancy)


def test_the_parts_are_those_of_one_draw_s_joint_covariance(figure):
    one = figure.account(5, 0.5, figure.of_rank(3), draws=1, seed=7)
    generator = np.random.default_rng([7, 0])
    tasks = figure.directions(5, 0.5, generator)
    rows = figure.of_rank(3)(tasks, generator)
    cov = joint_covariance(LinearGaussian(np.eye(20), tasks.T, np.full(5, 0.01), rows, 0.25))
    y, z = range(5), range(5, 8)
    assert one.information == pytest.approx(sum(information(cov, z, [t]) for t in y))
    assert one.coupling == pytest.approx(correlation_given(cov, y, z))
    assert one.unused == pytest.approx(3 * CHANNEL - information(cov, z, y))
    assert one.slack == pytest.approx(one.coupling + one.unused)


def test_known_accounts(found):
    spanning, _, _, misaligned = found["encoders"].values()
    assert spanning.information == pytest.approx(2.5 * np.log(1.01 / 0.21))
    assert spanning == found["ranks"][5]
    assert misaligned.information == pytest.approx(0, abs=1e-9)
    assert misaligned.coupling == pytest.approx(found["ranks"][0].coupling)
    assert found["ranks"][8].information == pytest.approx(spanning.information)
    assert found["ranks"][8].unused == pytest.approx(spanning.unused + 3 * CHANNEL)
    assert found["unrelated"][4].information == pytest.approx(2 * np.log(1.01 / 0.21))
    assert found["unrelated"][4].coupling == pytest.approx(0, abs=1e-9)


def test_what_is_said_of_the_claims_is_so(figure, found):
    assert found["ranks"][5].coupling > 5 * found["ranks"][1].coupling
    assert found["unrelated"][12].coupling > 0.5
    each = [found["unrelated"][T].information / T for T in (1, 4, 12)]
    assert each[1] == pytest.approx(each[0])
    assert each[1] > 3 * each[2]
    assert found["related"][12].information / 12 > 3 * each[2]
    said = figure.failures(found)
    assert f"from {found['ranks'][1].coupling:.2f} to {found['ranks'][5].coupling:.2f}" in said
    assert len(figure.table(found).splitlines()) == 1 + 4 + 4 + 3 + 3


def test_the_picture_is_the_same_twice_and_its_numbers_are_printed(figure, tmp_path, capsys):
    files = [tmp_path / name for name in ("one.svg", "folder/two.svg")]
    found = [figure.main(["--draws", "1", "--output", str(file)]) for file in files]
    printed = capsys.readouterr().out
    assert files[0].read_bytes() == files[1].read_bytes()
    assert b"<dc:date>" not in files[0].read_bytes()
    assert found[0] == found[1]
    assert printed == f"{figure.table(found[0])}\n{figure.failures(found[0])}\n" * 2


def test_the_page_s_code_prints_what_it_says(capsys):
    page = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/theory.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"# prints (.*)", code)


def test_the_page_s_tests_exist():
    page = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", page))
    source = (ROOT / "tests/theory/test_claims.py").read_text(encoding="utf-8")
    defined = set(re.findall(r"def (test_\w+)", source))
    assert len(named) >= 12
    assert named <= defined
