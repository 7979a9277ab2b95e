"""What methods train and compute, against formulas written out by hand."""

import json
from pathlib import Path

import pytest
from transformers import MixtralConfig

from coadapt import InputError
from coadapt.accounting import StepCounter, account_for_methods, model_asked
from coadapt.config import to_plain
from coadapt.model import build_model
from coadapt.planning import Plan
from coadapt.recipes import RECIPES
from coadapt.tasks import FileSource, Task
from coadapt.verbs.starting import accounting_sheet
from tests.invoking import refuse, succeed
from tests.tiny_language import CONFIGS

ROOT = Path(__file__).parent.parent
D, F, LAYERS = 32, 64, 2  # of the tiny BERT; its feed-forward maps are D -> F and F -> D
BATCH, TOKENS, TASKS = 16, 64, 5  # it takes no more tokens
N = BATCH * TOKENS

# Of a map, by what a method multiplies its input with (A's, a router, a frozen A), and what with
# the other factor (B's, a frozen B), as functions of r: their rows.
ROWS = {
    "lora": (lambda r: r, lambda r: r),
    "private": (lambda r: r, lambda r: r),
    "lora_multi_sample_dropout": (lambda r: 2 * r, lambda r: 2 * r),
    "hydra_lora": (lambda r: r + 4, lambda r: 4 * r),
    "r_lora": (lambda r: 2 * r + 5, lambda r: 6 * r),
    "lora_moe": (lambda r: 8 * r + 8, lambda r: 8 * r),
}
TRAINED = {  # a map's values, by rank and its width in and out
    "lora": lambda r, i, o: r * (i + o),
    "shared_private": lambda r, i, o: r * (i + o),
    "lora_multi_sample_dropout": lambda r, i, o: r * (i + o),
    "hydra_lora": lambda r, i, o: r * i + 4 * r * o + 4 * i,
    "hydra_lora_no_router": lambda r, i, o: r * i + 4 * r * o,
    "r_lora": lambda r, i, o: r * i + 5 * r * o + 5 * i,
    "m_lora": lambda r, i, o: r * i + 5 * r * o,
    "lora_moe": lambda r, i, o: 8 * r * (i + o) + 8 * i,
    "align_kl": lambda r, i, o: r * (i + o),
    "lora+pcgrad": lambda r, i, o: r * (i + o),
}


def trained(name, rank):
    return LAYERS * (TRAINED[name](rank, D, F) + TRAINED[name](rank, F, D))


def forward_flops(down, up):
    base = LAYERS * (4 * 2 * N * D * D + 2 * 2 * N * D * F + 4 * N * TOKENS * D)
    return base + LAYERS * 2 * N * (down + up) * (D + F)


def backward_flops(down, up):
    """Down to the first adapted map, whose input asks for no gradient."""
    whole_layer = 4 * 2 * N * D * D + 2 * 2 * N * D * F + 2 * 4 * N * TOKENS * D
    base = (LAYERS - 1) * whole_layer + 2 * N * F * D
    return base + 2 * LAYERS * 2 * N * (down + up) * (D + F) - 2 * N * down * D


@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory):
    """The tiny BERT's configuration, and nothing of its weights."""
    empty = tmp_path_factory.mktemp("configuration")
    (empty / "config.json").write_bytes((tiny_bert / "config.json").read_bytes())
    return empty


def account(folder, targets="mlp", **how):
    overrides = ["model.pooling=mean", f"model.target_modules={targets}"]
    return account_for_methods(model_asked(str(folder), overrides), **how)


def by_name(found):
    return {method.name: method for method in found.methods}


@pytest.fixture(scope="module")
def at_rank(folder):
    return account(folder, rank=3)


def test_every_recipe_with_adapters_is_there(at_rank):
    assert set(by_name(at_rank)) == set(RECIPES) - {"full", "frozen"}
    for name, method in by_name(at_rank).items():
        if RECIPES[name].recipe.sharing == "cooperative":
            assert "a rank budget of 3 is smaller than the 6 blocks" in str(method.reason)
            continue
        divides = RECIPES[name].recipe.structure.divides
        assert method.rank == (3 if divides else None)
        assert method.mergeable is RECIPES[name].recipe.structure.mergeable
    shape = (at_rank.batch, at_rank.tokens, at_rank.tasks, at_rank.num_modules)
    assert shape == (BATCH, TOKENS, TASKS, 2 * LAYERS)


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_trained_is_the_formula(name, at_rank, tiny_bert):
    method = by_name(at_rank)[name]
    assert method.trainable == trained(name, 3)
    names = ["a", "b"]
    data = FileSource(path="unused.jsonl")
    tasks = [Task(name=n, kind="classification", data=data, labels=("x", "y")) for n in names]
    config = model_asked(str(tiny_bert), ["model.pooling=mean", "model.target_modules=mlp"])
    model = build_model(config, tasks, RECIPES[name].recipe, Plan.shared(names, 3))
    assert method.trainable == model.num_trainable["adapters"]
    weights = sum(p.numel() for p in model.backbone.parameters())
    frozen = sum(p.numel() for n, p in model.backbone.named_parameters() if ".A0." in n)
    frozen += sum(p.numel() for n, p in model.backbone.named_parameters() if ".B0." in n)
    assert at_rank.num_weights == weights - method.trainable - frozen
    assert method.percent == pytest.approx(100 * method.trainable / at_rank.num_weights)


@pytest.mark.parametrize("name", ROWS)
def test_flops_are_the_formula(name, at_rank):
    down, up = (rows(3) for rows in ROWS[name])
    method = by_name(at_rank)[name]
    wanted = forward_flops(down, up) + backward_flops(down, up)
    assert method.flops == wanted
    assert method.relative_flops == wanted / (forward_flops(3, 3) + backward_flops(3, 3))


def test_a_jacobian_costs_a_backward_pass_a_task(at_rank):
    methods = by_name(at_rank)
    wanted = forward_flops(3, 3) + (1 + TASKS) * backward_flops(3, 3)
    assert methods["lora+pcgrad"].flops == methods["lora+grad_norm"].flops == wanted
    assert methods["lora+uncertainty"].flops == methods["lora"].flops


def test_alignments_are_counted(at_rank):
    methods = by_name(at_rank)
    kl, mmd = (methods[n].flops - methods["lora"].flops for n in ("align_kl", "align_mmd"))
    # Three products with the samples' tasks forward (means, around them, variances); two or three
    # back. Of each map's three values a token.
    product = 2 * TASKS * N * 2 * LAYERS * 3
    assert kl in (5 * product, 6 * product)
    assert mmd > 0
    for heads in ("r_lora", "m_lora"):  # they have one A too
        assert methods[f"{heads}+align"].flops - methods[heads].flops == kl


@pytest.mark.parametrize("budget", [3, 16])
def test_a_budget_gives_the_largest_rank_that_trains_no_more(budget, folder):
    methods = by_name(account(folder, budget=budget))
    allowed = 1.02 * trained("lora", budget)
    for name in TRAINED:
        rank = max((r for r in range(1, 40) if trained(name, r) <= allowed), default=None)
        assert methods[name].rank == rank, name
        assert methods[name].trainable == (None if rank is None else trained(name, rank))
    large = budget == 16
    assert methods["lora_moe"].rank == (1 if large else None)
    assert (methods["lora_moe"].flops is not None) is large
    assert ("take a larger budget" in str(methods["lora_moe"].reason)) is not large
    assert methods["lora"].relative_flops == 1.0


def test_rank_8_where_nothing_is_said_and_what_does_not_fit_the_modules_has_a_reason(folder):
    found = account(folder, "attention")
    assert (found.rank, found.budget) == (8, None)
    methods = by_name(found)
    assert methods["lora"].trainable == 8 * 2 * LAYERS * 2 * D
    mix_lora = methods["mix_lora"]  # of whole feed-forwards
    assert (mix_lora.rank, mix_lora.trainable, mix_lora.flops) == (None, None, None)
    assert "set it to 'mlp'" in str(mix_lora.reason)


@pytest.mark.parametrize("name", ["qwen2", "t5"])
def test_language_models_are_counted_with_their_head(name, tmp_path):
    CONFIGS[name]().save_pretrained(tmp_path)
    config = model_asked(str(tmp_path), ["model.target_modules=mlp"])
    steps = StepCounter(config, batch=6, tokens=8, num_tasks=2)
    few, more, most = (steps.flops(RECIPES["lora"].recipe, rank) or 0 for rank in (1, 2, 3))
    assert more - few == most - more > 0  # linear in the rank
    head = 2 * 48 * 32 * 384  # forward, and back to its input
    assert few > 2 * head


def test_a_model_that_looks_at_values_is_counted_but_for_flops(tmp_path, caplog):
    MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=384,
    ).save_pretrained(tmp_path)
    found = account_for_methods(model_asked(str(tmp_path)), rank=2)
    lora = by_name(found)["lora"]
    assert (lora.flops, lora.relative_flops) == (None, None)
    assert lora.trainable == 2 * ((32 + 32) + (32 + 16))
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    assert all(row[4] == "-" for row in accounting_sheet(found).rows)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rank": 2, "budget": 2}, "give one of them"),
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"budget": -1}, "budget must be at least 1, not -1"),
        ({"targets": "nothing"}, "matches no linear module"),
    ],
    ids=str,
)
def test_refusals(how, message, folder):
    with pytest.raises(InputError, match=message):
        account(folder, **how)


# The command ---------------------------------------------------------------------------------


def test_the_command_prints_json(folder, at_rank):
    words = ("--set", "model.pooling=mean", "--set", "model.target_modules=mlp", "--rank", 3)
    found = json.loads(succeed("methods", "--model", folder, *words, "--json"))
    assert found == to_plain(at_rank)


def test_the_command_prints_a_table(folder):
    table = succeed("methods", "--model", folder, "--budget", 2)  # of attention
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip()}
    one = D + D
    assert rows["lora"][:2] == ["2", f"{2 * 2 * LAYERS * one:,}"]
    assert rows["lora"][3:] == ["1.000", "yes"]
    assert rows["lora_moe"] == ["-", "-", "-", "-", "no"]
    assert rows["lora_moe:"][0] == "it"  # the reason
    assert "16 rows x 64 tokens of 5 tasks" in " ".join(table.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank", 2], "add --model"),
        (["--set", "model.kind=encoder"], "add --model"),
        (["--model", "FOLDER", "--rank", 2, "--budget", 2], "give one of them"),
        (["--model", "FOLDER", "--set", "model.poling=cls"], "did you mean 'pooling'"),
        (["--model", "FOLDER", "--set", "training.seed=1"], "unknown key 'training'"),
        (["--model", "/nowhere/at/all"], "could not be loaded"),
    ],
    ids=str,
)
def test_the_command_refuses(words, message, folder):
    assert message in refuse("methods", *(folder if w == "FOLDER" else w for w in words))


# The committed page --------------------------------------------------------------------------


def _widths(sizes, sites):
    """Return (in, out) of a layer's adapted maps."""
    d, f, v = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_key_value_heads"]
    key = v * d // sizes["num_attention_heads"]
    return [(d, f), (d, f), (f, d)] if sites == "mlp" else [(d, d), (d, key)]


def _weights(sizes, qwen):
    d, f = sizes["hidden_size"], sizes["intermediate_size"]
    key = sizes["num_key_value_heads"] * d // sizes["num_attention_heads"]
    layer = 2 * d * d + 2 * d * key + 3 * d * f + 2 * d + (d + 2 * key if qwen else 0)
    embeddings = sizes["vocab_size"] * d * (1 if sizes["tie_word_embeddings"] else 2)
    return sizes["num_hidden_layers"] * layer + embeddings + d


def test_the_committed_shares_are_arithmetic():
    path = ROOT / "benchmarks/results/papers_parameters.json"
    committed = json.loads(path.read_text(encoding="utf-8"))
    kinds = {
        "single": lambda r, n, i, o: r * (i + o),
        "heads": lambda r, n, i, o: r * i + n * r * o,
        "routed_heads": lambda r, n, i, o: r * i + n * r * o + n * i,
        "experts": lambda r, n, i, o: n * r * (i + o) + n * i,
    }
    for claim in committed["claims"]:
        sizes = committed["models"][claim["model"]]
        weights = _weights(sizes, qwen=claim["model"].startswith("Qwen"))
        assert sizes["weights"] == weights

        def percent(kind, rank, heads, sizes=sizes, weights=weights, claim=claim):
            widths = _widths(sizes, claim["sites"])
            one = sum(kinds[kind](rank, heads, i, o) for i, o in widths)
            return pytest.approx(100 * sizes["num_hidden_layers"] * one / weights)

        kind, rank, heads = claim["kind"], claim["rank"], claim["heads"]
        if "exact" in claim:
            assert claim["exact"] == percent(kind, rank, heads)
        if "exact_without_router" in claim:
            assert claim["exact_without_router"] == percent("heads", rank, heads)
        nearest = (claim.get("nearest_rank", rank), claim.get("nearest_heads"))
        assert claim["at_nearest"] == percent(kind, *nearest)
