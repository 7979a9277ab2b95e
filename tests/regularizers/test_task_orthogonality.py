"""The tasks' own parts of prompts held apart: against whole matrices, and in a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coadapt import InputError
from coadapt.model import build_model
from coadapt.recipe import Recipe
from coadapt.regularizers import Captured, FastWeights, Need, TaskOrthogonality
from coadapt.structures import Single, TaskPrompt
from tests.prompts import make_backbone, prompted, scattered
from tests.reference.slow_prompts import slow_overlap
from tests.small import MIXED, NAMES, make_batch
from tests.toy_runs import log_of, train_toy

OF = ("u", "v", "product")
each_of = pytest.mark.parametrize("of", OF)


def drawn(seed: int, num_tasks: int = 3, k: int = 5, d: int = 7, q: int = 2) -> FastWeights:
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        [
            torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
            for _ in range(num_tasks)
        ]
        for shape in ((k, q), (q, d))
    )
    return FastWeights(u=u, v=v)


def loss_of(part: TaskOrthogonality, *layers: FastWeights) -> Tensor:
    empty = torch.zeros(0, dtype=torch.long)
    prompts = {f"layer{index}": fast for index, fast in enumerate(layers)}
    return part.loss(Captured(task_ids=empty, valid=empty[:, None].bool(), prompts=prompts))


def test_what_it_is():
    part = TaskOrthogonality()
    assert (part.weight, part.of, part.needs) == (1e-2, "u", Need.PROMPTS)
    assert not part.several_tasks  # it does not ask for them in a batch
    assert part.select(["b", "a"]) == ("b", "a")
    with pytest.raises(InputError, match="weight must be at least 0"):
        TaskOrthogonality(weight=-1e-9)


@each_of
@settings(max_examples=12)
@given(
    num_tasks=st.integers(2, 4), k=st.integers(1, 5), d=st.integers(2, 6), q=st.integers(1, 3),
    num_layers=st.integers(1, 3),
)  # fmt: skip
def test_value_against_whole_matrices(of, num_tasks, k, d, q, num_layers):
    layers = [drawn(seed, num_tasks, k, d, q) for seed in range(num_layers)]
    found = loss_of(TaskOrthogonality(of=of), *layers)
    expected = torch.stack([slow_overlap(fast.u, fast.v, of) for fast in layers]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert 0 <= float(found.detach()) <= 1 + 1e-12


@each_of
def test_at_rank_one_it_is_the_squared_cosine(of):
    fast = drawn(0, num_tasks=2, q=1)
    cosines = [
        torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in (fast.u, fast.v)
    ]
    expected = {"u": cosines[0], "v": cosines[1], "product": cosines[0] * cosines[1]}[of]
    torch.testing.assert_close(loss_of(TaskOrthogonality(of=of), fast), expected**2)


@each_of
def test_gradients_against_finite_differences(of):
    part, fast = TaskOrthogonality(of=of), drawn(1, k=3, d=4)

    def loss(*parts: Tensor) -> Tensor:
        return loss_of(part, FastWeights(u=parts[:3], v=parts[3:]))

    assert torch.autograd.gradcheck(loss, (*fast.u, *fast.v))


@each_of
def test_no_scale_and_no_order_matters(of):
    part, fast = TaskOrthogonality(of=of), drawn(2)
    turned = FastWeights(
        u=[5.0 * fast.u[2], fast.u[0], -0.1 * fast.u[1]],
        v=[fast.v[2], -3.0 * fast.v[0], 0.01 * fast.v[1]],
    )
    torch.testing.assert_close(loss_of(part, turned), loss_of(part, fast), rtol=1e-10, atol=0)


def test_directions_apart_cost_nothing_and_equal_ones_the_most():
    eye = torch.eye(6, dtype=torch.float64)
    apart, same = [eye[:, 2 * t : 2 * t + 1] * 3 for t in range(3)], [eye[:, :1]] * 3
    cases = ((TaskOrthogonality(of="u"), apart, same), (TaskOrthogonality(of="v"), same, apart))
    for part, u, v in (*cases, (TaskOrthogonality(of="product"), apart, same)):
        assert loss_of(part, FastWeights(u=u, v=[x.T for x in v])) == 0
        assert loss_of(part, FastWeights(u=same, v=[x.T for x in same])) == 1


@each_of
def test_one_task_costs_nothing_and_a_part_of_zero_has_a_gradient(of):
    single = drawn(3, num_tasks=1)
    loss = loss_of(TaskOrthogonality(of=of), single)
    loss.backward()
    assert loss == 0
    assert all(x.grad is not None and not x.grad.any() for x in (*single.u, *single.v))
    fast = drawn(4)
    with torch.no_grad():
        fast.u[0].zero_()
        fast.v[0].zero_()
    loss_of(TaskOrthogonality(of=of), fast).backward()
    assert all(torch.isfinite(x.grad).all() for x in (*fast.u, *fast.v) if x.grad is not None)


# In a model --------------------------------------------------------------------------------------


def layers_of(state: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """Return the term of a model's tensors, by whole matrices."""
    modules = sorted({name.split("/")[1] for name in state if name.startswith("shared/")})
    us, vs = ([[state[f"{t}/{m}/{key}"] for t in names] for m in modules] for key in "uv")
    return torch.stack([slow_overlap(u, v, "u") for u, v in zip(us, vs, strict=True)]).mean()


def test_it_adds_its_share_to_the_loss_whatever_the_batch():
    part = TaskOrthogonality(weight=0.3)
    structure = TaskPrompt(length=2, layers=2, fast_rank=2)
    model = prompted(make_backbone("bert"), structure, regularizers=(part,))
    model.load_state_tensors(scattered("bert", structure).state_tensors(), "there")
    expected = layers_of(model.state_tensors(), NAMES)
    for tasks in (MIXED, (1, 1)):
        batch = make_batch(tasks)
        found = model(**batch)
        torch.testing.assert_close(found["penalties"]["task_orthogonality"], expected)
        without = model(**batch, penalty_share=0.0)["loss"]
        torch.testing.assert_close(found["loss"] - without, 0.3 * expected, rtol=1e-4, atol=1e-6)
    assert expected > 0.01


def test_it_is_logged_by_its_name(tiny_bert, toy_suite_dict, tmp_path):
    training = {"max_steps": 2, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}
    found = train_toy(tiny_bert, toy_suite_dict, tmp_path / "run", "ta_lora", training=training)
    assert found.config.batches == "mixed"
    fresh = build_model(found.config.model, found.suite.tasks, found.config.recipe, None, seed=0)
    first = log_of(tmp_path / "run")[1]["penalty_task_orthogonality"]
    expected = layers_of(fresh.state_tensors(), tuple(found.suite.names))
    assert first == pytest.approx(float(expected), rel=1e-5)


def test_what_has_no_parts_of_tasks_is_refused():
    with pytest.raises(InputError, match=r"own part of prompts, and structure 'single' has none"):
        Recipe(structure=Single(), regularizers=(TaskOrthogonality(),))
    with pytest.raises(InputError, match="there is none with fast_rank 0"):
        prompted(
            make_backbone("bert"), TaskPrompt(fast_rank=0), regularizers=(TaskOrthogonality(),)
        )
