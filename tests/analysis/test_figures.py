"""Pictures: the same bytes twice, well-formed, with their alternative text and every point."""

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from coadapt import InputError
from coadapt.analysis import (
    Alignment,
    AlignmentReport,
    HeadSimilarity,
    RepresentationMap,
    compare_sites,
    draw_alignment,
    draw_heads,
    draw_maps,
    draw_sites,
    draw_sweep,
    weight_sweep,
)
from tests.analysis.studies import aligned, write_study

MODULES = [f"layer.{n}.{kind}" for n in range(2) for kind in ("query", "value")]
KEYS = ("kl", "mmd", "norm", "effective_rank")
SVG = "{http://www.w3.org/2000/svg}"


def heads(run, seed, *, zero=False):
    values = np.random.default_rng(seed).uniform(-0.2, 0.9, size=(2, len(MODULES)))
    if zero:
        values[:] = np.nan
    raw, moved = (dict(zip(MODULES, row.tolist(), strict=True)) for row in values)
    return HeadSimilarity(
        run=run, structure="heads", num_heads=3, compared="B", raw=raw, moved=moved
    )


def a_map(run, method: Any = "pca", tasks=("a", "b & c", "d"), num=20):
    return RepresentationMap(
        run=run,
        method=method,
        split="test",
        modules=("query",),
        tasks=tasks,
        task_ids=np.repeat(np.arange(len(tasks)), num),
        points=np.random.default_rng(len(run)).normal(size=(num * len(tasks), 2)),
        explained=(0.5, 0.25) if method == "pca" else None,
    )


def report():
    generator = np.random.default_rng(0)
    before, after = (
        {module: Alignment(**dict(zip(KEYS, row, strict=True))) for module, row in rows}
        for rows in (
            zip(MODULES, generator.uniform(0.1, 2.0, size=(len(MODULES), 4)).tolist(), strict=True)
            for _ in range(2)
        )
    )
    return AlignmentReport(
        runs=("runs/lora", "runs/align"),
        tasks=("x", "y"),
        split="test",
        num_rows={"x": 5, "y": 5},
        before=before,
        after=after,
    )


def sweep(folder):
    recipes = {"lora": aligned(None, scale=4.0), "off": aligned(None), "on": aligned(0.1)}
    scores = {"lora": 0.75, "off": 0.7, "on": 0.8}
    return weight_sweep(write_study(folder / "s", recipes, scores, baseline="lora"), "align_kl")


def sites(folder):
    recipes, scores = {"lora": aligned(None), "align": aligned(0.1)}, {"lora": 0.7, "align": 0.8}
    folders = [
        write_study(
            folder / site, recipes, scores, baseline="lora", sites=site, differences={"align": 0.1}
        )
        for site in ("attention", "mlp")
    ]
    return compare_sites(folders)[0]


DRAWN = {
    "heads": (draw_heads, lambda _: {"R-LoRA": heads("a", 0), "M-LoRA": heads("b", 1)}),
    "heads-zero": (draw_heads, lambda _: {"untrained": heads("a", 0, zero=True)}),
    "pca": (draw_maps, lambda _: {"LoRA": a_map("runs/lora"), "Align": a_map("runs/align")}),
    "tsne": (draw_maps, lambda _: {"LoRA": a_map("runs/lora", "tsne")}),
    "alignment": (draw_alignment, lambda _: report()),
    "sweep": (draw_sweep, sweep),
    "sites": (draw_sites, sites),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_picture_is_the_same_twice_and_says_what_it_shows(kind, tmp_path):
    draw, make = DRAWN[kind]
    found = make(tmp_path)
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    told = [draw(found, file) for file in files]
    assert told[0] == told[1]
    assert files[0].read_bytes() == files[1].read_bytes()
    root = ElementTree.fromstring(files[0].read_text(encoding="utf-8"))
    assert root.get("role") == "img"
    assert root[0].tag == f"{SVG}title"
    assert root[0].text == told[0]
    assert told[0].endswith(".")
    assert b"<dc:date>" not in files[0].read_bytes()


def points(file):
    """How many markers each scatter of a picture places."""
    root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    groups = (g for g in root.iter(f"{SVG}g") if g.get("id", "").startswith("PathCollection"))
    return [len(list(group.iter(f"{SVG}use"))) for group in groups]


def test_every_row_is_a_point(tmp_path):
    found = a_map("runs/lora", num=12)
    draw_maps({"a": found, "b": a_map("runs/align", num=7)}, tmp_path / "a.svg")
    assert sum(points(tmp_path / "a.svg")) == 3 * 12 + 3 * 7


def test_every_module_is_a_point_of_each_panel(tmp_path):
    draw_alignment(report(), tmp_path / "a.svg")
    assert points(tmp_path / "a.svg") == [2] * 2 * 4  # two layers, two kinds, four panels
    draw_heads({"x": heads("a", 0), "y": heads("b", 1)}, tmp_path / "b.svg")
    assert points(tmp_path / "b.svg") == [2] * 2 * 2 * 2


def test_texts_name_numbers(tmp_path):
    told = draw_heads({"M-LoRA": heads("b", 1)}, tmp_path / "a.svg")
    assert f"M-LoRA {np.median(list(heads('b', 1).raw.values())):.2f}" in told
    assert "none (zero)" in draw_heads({"x": heads("a", 0, zero=True)}, tmp_path / "a.svg")
    assert "0.700 at 0, 0.800 at 0.1" in draw_sweep(sweep(tmp_path), tmp_path / "b.svg")
    assert "align-R8 at mlp +0.100 (win)" in draw_sites(sites(tmp_path), tmp_path / "c.svg")
    assert "60 rows of a, b & c, d" in draw_maps({"LoRA": a_map("runs/lora")}, tmp_path / "d.svg")


def test_a_png(tmp_path):
    draw_alignment(report(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("draw", "found", "file", "message"),
    [
        (draw_heads, {}, "a.svg", "found is empty; there is nothing to draw"),
        (draw_maps, {}, "a.svg", "found is empty"),
        (draw_sweep, [], "a.svg", "found is empty"),
        (
            draw_maps,
            {"a": a_map("a"), "b": a_map("b", tasks=("x",))},
            "a.svg",
            "are of different tasks",
        ),
        (draw_maps, {"a": a_map("a")}, "a.pdf", r"is written as \.svg or \.png"),
        (draw_maps, {"a": a_map("a")}, "nowhere/a.svg", "is no folder; make it first"),
    ],
    ids=["no-heads", "no-maps", "no-sweeps", "other-tasks", "ending", "folder"],
)
def test_bad_arguments_are_refused(draw, found, file, message, tmp_path):
    with pytest.raises(InputError, match=message):
        draw(found, tmp_path / file)
    assert list(tmp_path.iterdir()) == []
