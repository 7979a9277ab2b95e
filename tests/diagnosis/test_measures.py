"""A diagnosis as a file: what comes back, and what is refused."""

import copy
import json
import math

import numpy as np
import pytest

import coadapt
from coadapt._errors import InputError
from coadapt.diagnosis import (
    Diagnosis,
    PairMeasure,
    TableMeasure,
    TaskMeasure,
    load_diagnosis,
)

TASKS = ("a", "b", "c")


def matrix(seed=0, *, diagonal=1.0):
    values = np.random.default_rng(seed).uniform(-1, 1, size=(3, 3))
    values = (values + values.T) / 2
    np.fill_diagonal(values, diagonal)
    return values


def make():
    values = matrix()
    partly = matrix(1, diagonal=math.nan)
    partly[0, 2] = partly[2, 0] = math.nan
    return Diagnosis(
        tasks=TASKS,
        of="model m, suite s",
        rows={"a": 10, "b": 20, "c": 30},
        settings={"seed": 3, "pool": False},
        pairs={
            "similarity": PairMeasure(
                title="similarity",
                reading="most alike: a and b",
                values=values,
                low=values - 0.1,
                high=values + 0.1,
                samples=np.stack([matrix(seed) for seed in range(4)]),
            ),
            "redundancy": PairMeasure(
                title="redundancy", reading="r", values=partly, p_value=abs(partly)
            ),
        },
        by_task={"rows": TaskMeasure(title="rows", reading="r", values=np.array([1, 2, math.nan]))},
        tables={
            "entropy": TableMeasure(
                title="entropy",
                reading="r",
                rows=("first", "second"),
                columns=TASKS,
                values=np.array([[1.0, 2.0, math.nan], [1 / 3, 5.0, 6.0]]),
            )
        },
        notes=("one", "two"),
        seconds={"collect": 1.23456},
    )


def assert_equal(found, expected, *, atol):
    for key, value in vars(expected).items():
        other = getattr(found, key)
        if isinstance(value, np.ndarray):
            assert other.dtype == np.float64
            np.testing.assert_allclose(other, value, atol=1e-4 if key == "samples" else atol)
        else:
            assert other == value, key


def test_a_saved_diagnosis_comes_back(tmp_path):
    expected = make()
    path = tmp_path / "diagnosis.json"
    expected.save(path)
    found = load_diagnosis(path)
    for kind in ("pairs", "by_task", "tables"):
        mine, theirs = getattr(found, kind), getattr(expected, kind)
        assert list(mine) == list(theirs)
        for name in theirs:
            assert_equal(mine[name], theirs[name], atol=1e-6)
    for key in ("tasks", "of", "rows", "settings", "notes"):
        assert getattr(found, key) == getattr(expected, key)
    assert found.seconds == {"collect": 1.235}
    again = tmp_path / "again.json"
    found.save(again)
    assert again.read_text() == path.read_text()  # rounding once is rounding twice


def test_samples_of_four_tasks_keep_their_places(tmp_path):
    samples = np.random.default_rng(4).uniform(-0.5, 0.5, size=(2, 4, 4))
    samples = samples + samples.transpose(0, 2, 1)
    samples[:, range(4), range(4)] = 1.0
    pair = PairMeasure(title="t", reading="r", values=samples[0], samples=samples)
    names = ("a", "b", "c", "d")
    Diagnosis(tasks=names, of="m", rows=dict.fromkeys(names, 1), pairs={"p": pair}).save(
        tmp_path / "four.json"
    )
    found = load_diagnosis(tmp_path / "four.json").pair("p").samples
    assert found is not None
    np.testing.assert_allclose(found, samples, atol=1e-4)


def test_the_file_is_plain_json_with_version_and_kind(tmp_path):
    path = tmp_path / "diagnosis.json"
    make().save(path)

    def refuse(name):
        raise AssertionError(name)

    plain = json.loads(path.read_text(), parse_constant=refuse)  # no NaN, no Infinity
    assert plain["kind"] == "diagnosis"
    assert plain["coadapt_version"] == coadapt.__version__
    assert plain["pairs"]["redundancy"]["values"][0][2] is None
    assert plain["pairs"]["redundancy"]["low"] is None
    assert len(plain["pairs"]["similarity"]["samples"][0]) == 3  # above the diagonal alone
    assert coadapt.load_diagnosis(str(path)).tasks == TASKS


def test_a_measure_by_pair_is_found_by_name():
    assert make().pair("similarity").title == "similarity"
    with pytest.raises(InputError, match="no 'similarty' by pair; did you mean 'similarity'"):
        make().pair("similarty")


# --- files that hands have broken


def set_in(plain, place, value):
    *parents, last = place
    for key in parents:
        plain = plain[key]
    plain[last] = value


def remove(plain, place):
    *parents, last = place
    for key in parents:
        plain = plain[key]
    del plain[last]


SIMILARITY = ("pairs", "similarity")
BROKEN = {
    "not symmetric": ((*SIMILARITY, "values", 0, 1), 0.9, "values of 'similarity' is not symm"),
    "interval not symmetric": ((*SIMILARITY, "low", 0, 1), 0.9, "low of 'similarity' is not symm"),
    "infinite": ((*SIMILARITY, "values", 0, 1), math.inf, r"values of 'similarity'\[0, 1\] is inf"),
    "a row short": ((*SIMILARITY, "values", 2), [1.0, 2.0], "no whole diagnosis: .*inhomogeneous"),
    "a vector": ((*SIMILARITY, "values"), [1.0, 2.0], r"must be a matrix .* not \(2,\)"),
    "a size": ((*SIMILARITY, "values"), [[1.0]], r"pairs\.similarity\.values must be of shape"),
    "an interval's size": ((*SIMILARITY, "high"), [[1.0]], r"pairs\.similarity\.high must be of"),
    "a text": ((*SIMILARITY, "values", 0, 0), "one", "no whole diagnosis: .*'one'"),
    "samples of another size": ((*SIMILARITY, "samples", 0), [0.5], "no whole diagnosis"),
    "a task more": (("tasks",), ["a", "b", "c", "d"], "no whole diagnosis|of shape"),
    "a task less": (("tasks",), ["a", "b"], "no whole diagnosis|of shape"),
    "by task": (("by_task", "rows", "values"), [1.0], r"by_task\.rows\.values must be of shape"),
    "a table's rows": (("tables", "entropy", "rows"), ["x"], r"tables\.entropy\.values must be"),
    "pairs as a list": (("pairs",), [], "no whole diagnosis"),
    "rows as a text": (("rows",), "abc", "no whole diagnosis"),
    "another kind": (("kind",), "plan", "is no diagnosis; make one with 'coadapt diagnose'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_file_and_place(case, tmp_path):
    place, value, told = BROKEN[case]
    plain = copy.deepcopy(make().to_plain())
    set_in(plain, place, value)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(InputError, match=told) as error:
        load_diagnosis(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "place",
    [
        ("tasks",),
        ("pairs",),
        ("notes",),
        (*SIMILARITY, "values"),
        (*SIMILARITY, "samples"),
        ("by_task", "rows", "reading"),
        ("tables", "entropy", "columns"),
    ],
    ids=lambda place: ".".join(place),
)
def test_a_missing_key_is_named(place, tmp_path):
    plain = copy.deepcopy(make().to_plain())
    remove(plain, place)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(InputError, match=rf"broken\.json is no whole .*KeyError\('{place[-1]}'\)"):
        load_diagnosis(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not readable JSON"),
        ("[1, 2]", "is no diagnosis; make one with 'coadapt diagnose'"),
        ("{}", "is no diagnosis; make one with 'coadapt diagnose'"),
    ],
    ids=["cut", "a list", "empty"],
)
def test_other_files_are_refused(text, told, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"other\.json {told}"):
        load_diagnosis(path)
    with pytest.raises(InputError, match=r"nowhere\.json does not exist"):
        load_diagnosis(tmp_path / "nowhere.json")


def test_no_samples_are_no_error(tmp_path):
    plain = make().to_plain()
    plain["pairs"]["similarity"]["samples"] = []
    path = tmp_path / "empty.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(InputError, match=r"empty\.json"):
        load_diagnosis(path)
    plain["pairs"]["similarity"]["samples"] = None
    path.write_text(json.dumps(plain))
    assert load_diagnosis(path).pair("similarity").samples is None
