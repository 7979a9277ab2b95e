import datasets
import pytest

from coadapt._errors import InputError
from tests.tasks.toy_rows import WORDS, splits_of, suite_of

# A folder of Parquet files loads as a hub data set does.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def write(features=None, **splits):
        folder = tmp_path / "twin" / "data"
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            table = datasets.Dataset.from_list(rows, features=features)
            table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return {"kind": "hub", "path": str(tmp_path / "twin")}

    return write


FEATURES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos", "mid"])}
)
NUMBERED = [{"text": text, "label": i % 2} for i, text in enumerate(WORDS)]


@pytest.mark.parametrize(
    ("labels", "expected", "ids"),
    [
        ([], ("neg", "pos", "mid"), [0, 1]),
        (["bad", "good", "so so"], ("bad", "good", "so so"), [0, 1]),
        (["pos", "neg", "mid"], ("pos", "neg", "mid"), [1, 0]),
        (["pos", "neg"], ("pos", "neg"), [1, 0]),
        ([1, 0, 2], (1, 0, 2), [1, 0]),
    ],
)
def test_hub_classes(hub, labels, expected, ids):
    source = hub(FEATURES, train=NUMBERED[:20], test=NUMBERED[30:])
    suite = suite_of(source, labels=labels)
    assert suite.task("a").labels == expected
    assert suite.rows("a", "test").texts == tuple(WORDS[30:])
    assert suite.rows("a", "test").labels.tolist() == ids * 5


def test_hub_splits(hub):
    secret = [row | {"label": -1} for row in NUMBERED[30:]]
    source = hub(FEATURES, train=NUMBERED[:20], validation=NUMBERED[20:30], test=secret)
    with pytest.raises(
        InputError,
        match=r"twin\[test\], row 1: task 'a': label -1 stands for no class.*data.splits",
    ):
        suite_of(source)
    found = splits_of(suite_of(source | {"splits": {"train": "train", "test": "validation"}}))
    assert found["test"] == WORDS[20:30]
    assert sorted(found["train"] + found["validation"]) == sorted(WORDS[:20])
    with pytest.raises(InputError, match="has no split 'validatoin'; did you mean 'validation'"):
        suite_of(source | {"splits": {"train": "train", "test": "validatoin"}})
    with pytest.raises(
        InputError, match=r"twin\[train\]: task 'a': no column 'txt'; did you mean 'text'"
    ):
        suite_of(source, text="txt")


def test_hub_without_a_network():
    with pytest.raises(InputError) as error:
        suite_of("hub:nobody/nothing")
    message = str(error.value)
    assert "task 'a': the hub data set 'nobody/nothing' cannot be loaded (" in message
    assert "HF_HUB_OFFLINE=1 uses what the cache holds, and --data-root" in message


def test_no_code_of_a_data_set_is_run(tmp_path):
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "twin.py").write_text("raise SystemExit('never run')")
    with pytest.raises(InputError, match="cannot be loaded"):
        suite_of({"kind": "hub", "path": str(tmp_path / "twin")})
