"""The verb ``merge``, in process."""

import json

import pytest

from tests.invoking import invoke, refuse, succeed
from tests.peft_folders import peft_folder
from tests.toy_runs import result_of

pytestmark = [
    # Stock PEFT asks transformers 5.23 for an attribute under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


def test_the_verb_merges_runs(sources, tmp_path):
    folders = [run.path for run in sources]
    options = ("--method", "dare_ties", "--density", 0.2, "--seed", 4, "--rank", 8)
    text = succeed("merge", *folders, *options, "-o", tmp_path / "a")
    told = json.loads(succeed("merge", *folders, *options, "-o", tmp_path / "b", "--json"))
    assert result_of(tmp_path / "a")["merge"] == result_of(tmp_path / "b")["merge"]
    assert told["method"]["rank"] == 8
    assert told["output"] == str(tmp_path / "b")
    assert 0 < told["error"] < 1
    assert f"rank 8, relative error of the cut {told['error']:.3g}" in text
    rows = [line.split() for line in text.splitlines()]
    for task, scores in told["tasks"].items():
        for metric, after in scores["after"]["metrics"].items():
            row = next(row for row in rows if row[:2] == [task, metric])
            assert row[3] == f"{after['value']:.3f}"
    assert "max |delta|: degree" not in text
    assert "max |delta|: same+degree" in text
    assert f"run written to {tmp_path / 'a'}\n" in text


def test_the_verb_merges_adapters(tiny_bert, tmp_path):
    folders = [peft_folder(tiny_bert, tmp_path / name) for name in ("a", "b")]
    text = succeed("merge", *folders, "--method", "ties", "--scope", "tensor", "-o", tmp_path / "c")
    assert f"adapter written to {tmp_path / 'c'}\n" in text
    told = json.loads(succeed("merge", *folders, "--weight", 0.5, "-o", tmp_path / "d", "--json"))
    assert (told["ranks"], told["error"], told["no_sign"]) == ([8, 8], 0.0, None)
    assert set(told["largest"]) == {"a", "b"}


def test_the_verb_refuses_with_what_would_do(sources, tiny_bert, tmp_path):
    adapter = peft_folder(tiny_bert, tmp_path / "adapter")
    (tmp_path / "export/adapters").mkdir(parents=True)
    run, out = sources[0].path, tmp_path / "out"
    for words, message in (
        ((run, adapter), "give runs or PEFT adapters, not both"),
        ((tmp_path / "nowhere",), "is neither a run (no config.yaml) nor a PEFT adapter"),
        ((tmp_path / "export",), f"give the folders in {tmp_path / 'export/adapters'}"),
        ((run, "--method", "tie"), "tie"),
        ((run, "--density", 0.5), "density is for DARE and TIES, not for 'average'; drop it"),
        ((run, "--method", "ties", "--density", 2), "above 0 and at most 1, not 2.0"),
        ((run, run), "task 'sentiment' is in"),
        ((adapter, adapter), "two of the adapters are called 'adapter'"),
    ):
        assert message in refuse("merge", *words, "-o", out)
    assert not out.exists()


def test_help_fits_a_terminal():
    shown = invoke("merge", "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    options = ("--method", "--weight", "--density", "--scope", "--rank", "--seed", "--json")
    assert all(option in shown for option in options)
