"""Ranks and entropies of finished runs, and their pictures."""

import json
import math

import numpy as np
import pytest

from coadapt import InputError
from coadapt.analysis import (
    RankAllocation,
    SpectralEntropies,
    allocation_sheet,
    draw_entropies,
    draw_ranks,
    entropies_sheet,
    rank_allocation,
    spectral_entropies,
)
from coadapt.analysis._modules import by_kind
from tests.toy_runs import tensors_of, train_toy

HASI = {
    "structure": {"kind": "single", "scale": 5.0},
    "init": {"kind": "hasi", "rows": 8, "temperature": 0.02},
    "sharing": "cooperative",
}


@pytest.fixture(scope="module")
def thanora(tiny_bert, toy_suite_files, tmp_path_factory):
    output = tmp_path_factory.mktemp("thanora") / "run"
    return train_toy(tiny_bert, toy_suite_files, output, HASI, budget=20)


# --- of runs


def test_ranks_are_those_of_the_saved_factors(thanora):
    found = rank_allocation(thanora.path)
    assert found.blocks == (*thanora.suite.names, "cooperative")
    tensors = tensors_of(thanora.path / "adapter")
    shapes = {
        module: {b: len(tensors[f"blocks.safetensors/{b}/{module}/A"]) for b in found.blocks}
        for module in found.ranks
    }
    assert found.ranks == shapes
    assert len({tuple(of.values()) for of in shapes.values()}) > 1


def test_entropies_are_of_all_tasks_and_maps_and_give_the_larger_rank(thanora):
    found = spectral_entropies(thanora)
    ranks = rank_allocation(thanora).ranks
    assert found.tasks == tuple(thanora.suite.names)
    assert found.normalised.keys() == ranks.keys()
    for module, of in found.normalised.items():
        order = sorted(of, key=of.__getitem__)
        given = [ranks[module][task] for task in order]
        assert given == sorted(given)
        for task, entropy in of.items():
            assert found.raw[module][task] == pytest.approx(entropy * math.log(20))


def test_pooled_statistics_have_one_entropy_a_map(make_run, tmp_path):
    found = spectral_entropies(make_run("corda"))
    assert found.tasks == ("all tasks",)
    assert found.reading.startswith("mean normalised entropy of all tasks: 0.")
    assert found.reading in draw_entropies(found, tmp_path / "a.svg")


def test_runs_without_ranks_or_statistics_are_refused(make_run):
    with pytest.raises(InputError, match=r"no ranks by module \(structure 'single', init 'default"):
        rank_allocation(make_run("lora"))
    with pytest.raises(InputError, match=r"has no statistics.json \(init 'default'\); take a run"):
        spectral_entropies(make_run("lora"))
    with pytest.raises(InputError, match="no ranks by module"):
        rank_allocation(make_run("frozen", "refused-frozen", budget=None))


# --- readings, sheets and pictures

MAPS = [f"layer.{layer}.{kind}" for layer in range(4) for kind in ("query", "value")]


def ranks_of(*tasks_in_layer, coop=2):
    """An allocation with these ranks of tasks a and b, the same in both maps of a layer."""
    ranks = {
        module: {"a": a, "b": b, "cooperative": coop}
        for module, (a, b) in zip(MAPS, np.repeat(tasks_in_layer, 2, axis=0).tolist(), strict=True)
    }
    return RankAllocation(run="runs/x", blocks=("a", "b", "cooperative"), ranks=ranks)


DEEPER = ranks_of((5, 1), (4, 2), (1, 5), (2, 4))


@pytest.fixture
def entropies():
    values = {
        module: {"a": 0.5 + 0.01 * place, "b": 0.6 + 0.01 * place}
        for place, module in enumerate(MAPS)
    }
    return SpectralEntropies(run="runs/x", tasks=("a", "b"), normalised=values, raw=values)


def test_the_reading_of_ranks():
    assert DEEPER.reading == (
        "mean rank of 8 a map: a 3.0 (1 to 5), b 3.0 (1 to 5), cooperative 2.0 (2 to 2); most in "
        "the first half of the layers: a with 4.5, in the second: b with 4.5"
    )
    assert "layers: none, 3.0 each, in the second" in ranks_of(*[(3, 3)] * 4).reading


def test_the_reading_of_entropies(entropies):
    assert entropies.reading == (
        "mean normalised entropy is highest for b (0.635) and lowest for a (0.535); in a map tasks "
        "are 0.100 apart on average, while maps' means are up to 0.070 apart"
    )


def test_sheets_and_plain_data(entropies):
    sheet = allocation_sheet(DEEPER)
    assert sheet.columns == ("module", "a", "b", "cooperative")
    assert sheet.rows[4] == ("layer.2.query", "1", "5", "2")
    assert entropies_sheet(entropies).rows[1] == ("layer.0.value", "0.510", "0.610")
    assert json.loads(json.dumps(DEEPER.to_plain()))["ranks"] == DEEPER.ranks
    assert json.loads(json.dumps(entropies.to_plain()))["normalised"] == entropies.normalised


def test_a_picture_says_what_it_shows_and_is_the_same_twice(entropies, tmp_path):
    for name, draw, reading in (
        ("ranks", lambda file: draw_ranks(DEEPER, file), DEEPER.reading),
        ("entropies", lambda file: draw_entropies(entropies, file), entropies.reading),
    ):
        files = [tmp_path / f"{name}-{number}.svg" for number in range(2)]
        told = [draw(file) for file in files]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert told[0].endswith(f"{reading}.")


def test_stacks_reach_the_budget(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    tops, bar = {}, Axes.bar

    def note(panel, x, heights, bottom, **options):
        for place, height, start in zip(x, heights, bottom, strict=True):
            tops[panel, place] = max(tops.get((panel, place), 0), start + height)
        return bar(panel, x, heights, bottom=bottom, **options)

    monkeypatch.setattr(Axes, "bar", note)
    draw_ranks(DEEPER, tmp_path / "a.svg")
    assert list(tops.values()) == [8.0] * 8


# --- names of modules


@pytest.mark.parametrize(
    ("modules", "kinds"),
    [
        (["e.layer.0.self.query", "e.layer.1.self.query"], ["query"]),
        (["e.0.attention.output.dense", "e.0.output.dense", "e.0.mid.dense"],
         ["attention.output.dense", "e.output.dense", "mid.dense"]),
        (["encoder.block.0.layer.0.A.q", "decoder.block.0.layer.0.A.q"],
         ["encoder.block.layer.0.A.q", "decoder.block.layer.0.A.q"]),
        (["head"], ["head"]),
    ],
    ids=["one", "endings", "encoder-decoder", "no-number"],
)  # fmt: skip
def test_kinds_have_names_of_their_own(modules, kinds):
    found = by_kind(modules)
    assert list(found) == kinds
    assert [name for of in found.values() for name in of.values()] == modules


def test_layers_of_two_digits():
    assert by_kind([f"h.{layer}.q" for layer in (2, 10)]) == {"q": {2: "h.2.q", 10: "h.10.q"}}
