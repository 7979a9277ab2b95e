"""The slow oracles of ``coadapt.regularizers``: loops over modules, tasks, pairs and dimensions.

They share no code with the package. Values are tensors, so that autograd gives their gradients.
"""

from itertools import combinations

import torch
from torch.distributions import Normal, kl_divergence

from coadapt.regularizers import Captured, Routing

SIGMAS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6]


def make_captured(seed=0, *, ranks=(3, 3), tasks=(0, 2, 0, 2, 5, 5), length=5, **changes):
    """Return a batch in float64 with padding at the end, a prompt and an answer in each row."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(tasks), length)
    lengths = torch.randint(3, length + 1, (len(tasks), 1), generator=generator)
    starts = torch.randint(1, 3, (len(tasks), 1), generator=generator)
    places = torch.arange(length)
    offsets = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    representations = {}
    for index, rank in enumerate(ranks):
        z = torch.randn(*shape, rank, generator=generator, dtype=torch.float64)
        z = (1 + index) * z + offsets[list(tasks)][:, None]
        representations[f"module{index}"] = z.requires_grad_()
    return Captured(
        **{
            "task_ids": torch.tensor(tasks),
            "valid": places < lengths,
            "learned": places >= starts,
            "representations": representations,
            **changes,
        }
    )


def make_routing(seed=0, *, modules=2, experts=4, top_k=None, tasks=(0, 1, 0, 2), length=5):
    """Return a batch of router probabilities in float64, with padding at the end."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(tasks), length)
    lengths = torch.randint(2, length + 1, (len(tasks), 1), generator=generator)
    routing = {}
    for index in range(modules):
        logits = torch.randn(*shape, experts, generator=generator, dtype=torch.float64)
        probabilities = logits.softmax(dim=-1).requires_grad_()
        routing[f"module{index}"] = Routing(probabilities=probabilities, top_k=top_k)
    valid = torch.arange(length) < lengths
    return Captured(task_ids=torch.tensor(tasks), valid=valid, routing=routing)


def leaves(captured):
    """Return what gradients are taken of."""
    routings = [routing.probabilities for routing in captured.routing.values()]
    return [*captured.representations.values(), *routings]


def value_and_gradients(loss, captured):
    """Return the loss and its gradients, zeros where there are none."""
    gradients = torch.autograd.grad(loss, leaves(captured), allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves(captured)]
    filled = [z if g is None else g for g, z in zip(gradients, zeros, strict=True)]
    return [loss.detach(), *filled]


def groups_of_samples(captured, module, pool, tokens, max_tokens=None, min_count=2):
    """Return, for each position or once, ``{task: [vectors]}`` of the tasks with enough."""
    z = captured.representations[module]
    groups = {}
    for row in range(len(z)):
        places = [
            place
            for place in range(z.shape[1])
            if captured.valid[row, place]
            and (tokens == "all" or bool(captured.learned[row, place]) == (tokens == "answer"))
        ]
        if not places:
            continue
        own = [z[row, place] for place in places]
        found = {
            "token": [(0, vector) for vector in own],
            "sequence": [(0, sum(own) / len(own))],
            "last": [(0, own[-1])],
            "position": list(zip(places, own, strict=True)),
        }[pool]
        for group, vector in found:
            task = int(captured.task_ids[row])
            groups.setdefault(group, {}).setdefault(task, []).append(vector)
    for group in groups.values():
        for task, vectors in list(group.items()):
            if len(vectors) < min_count:
                del group[task]
            elif pool == "token" and max_tokens is not None and len(vectors) > max_tokens:
                last = len(vectors) - 1
                steps = [step * last // (max_tokens - 1) for step in range(max_tokens)]
                group[task] = [vectors[step] for step in steps]
    return list(groups.values())


def _over_pairs(groups, distance, reduction):
    """Return the mean or sum over pairs of a pair's mean over groups; a pair there must be."""
    found = {}
    for group in groups:
        for i, j in combinations(sorted(group), 2):
            found.setdefault((i, j), []).append(distance(group, group[i], group[j]))
    means = [sum(values) / len(values) for values in found.values()]
    return sum(means) / (len(means) if reduction == "mean" else 1)


def align_kl(captured, *, pool="token", tokens="all", reduction="mean", floor=1e-3, **counts):
    """Return the mean over modules of the symmetrised KL of Gaussians, from torch's own."""

    def distance(group, xs, ys):
        everything = torch.stack([x for vectors in group.values() for x in vectors]).detach()
        raised = max(1e-6, floor * float(everything.var(dim=0, correction=0).mean()))
        p, q = (
            Normal(x.mean(dim=0), (x.var(dim=0, correction=0) + raised).sqrt())
            for x in (torch.stack(xs), torch.stack(ys))
        )
        return 0.5 * (kl_divergence(p, q) + kl_divergence(q, p)).sum()

    modules = [
        _over_pairs(
            groups_of_samples(captured, module, pool, tokens, **counts), distance, reduction
        )
        for module in captured.representations
    ]
    return sum(modules) / len(modules)


def align_mmd(
    captured,
    *,
    pool="token",
    tokens="all",
    reduction="mean",
    bandwidths="median",
    estimator="biased",
    **counts,
):
    """Return the mean over modules of MMD squared, kernel by kernel and pair by pair."""
    modules = []
    for module in captured.representations:
        groups = groups_of_samples(captured, module, pool, tokens, **counts)
        groups = [group for group in groups if len(group) > 1]
        if bandwidths == "median":
            between = sorted(
                float((x - y).square().sum())
                for group in groups
                for x, y in combinations(
                    [x.detach() for vectors in group.values() for x in vectors], 2
                )
            )
            median = max(1e-6, between[(len(between) - 1) // 2])
            sigmas, share = [median * c for c in (0.25, 0.5, 1, 2, 4)], 1 / 5
        else:
            sigmas, share = SIGMAS, 1

        def distance(_, xs, ys, sigmas=sigmas, share=share):
            return share * sum(_mmd(xs, ys, sigma, estimator) for sigma in sigmas)

        modules.append(_over_pairs(groups, distance, reduction))
    return sum(modules) / len(modules)


def _mmd(xs, ys, sigma, estimator):
    def kernel(x, y):
        return torch.exp(-(x - y).square().sum() / (2 * sigma))

    def within(vectors):
        n = len(vectors)
        pairs = [(a, b) for a in range(n) for b in range(n) if estimator == "biased" or a != b]
        return sum(kernel(vectors[a], vectors[b]) for a, b in pairs) / len(pairs)

    cross = sum(kernel(x, y) for x in xs for y in ys) / (len(xs) * len(ys))
    return within(xs) + within(ys) - 2 * cross


def load_balance(captured):
    """Return MixLoRA's: over slots and experts, part of the tokens times mean probability."""
    tokens = [
        (routing.probabilities[row, place], routing.top_k or 1)
        for routing in captured.routing.values()
        for row, place in captured.valid.nonzero().tolist()
    ]
    experts = len(tokens[0][0])
    total = 0.0
    for slot in range(tokens[0][1]):
        for expert in range(experts):
            chose = sum(int(p.argsort(descending=True)[slot]) == expert for p, _ in tokens)
            total = total + chose / len(tokens) * sum(p[expert] for p, _ in tokens) / len(tokens)
    return experts * total


def localized_balance(captured, *, delta, task_types, expert_types, dispersion="cv2"):
    """Return LoRAMoE's constraint, entry by entry, summed over modules."""
    total = 0.0
    for routing in captured.routing.values():
        entries = []
        for row, task in enumerate(captured.task_ids.tolist()):
            places = captured.valid[row].nonzero()[:, 0].tolist()
            for expert, kind in enumerate(expert_types):
                used = sum(routing.probabilities[row, place, expert] for place in places)
                used = used / len(places)
                entries.append(used * (1 + delta if kind == task_types[task] else 1 - delta))
        mean = sum(entries) / len(entries)
        variance = sum((entry - mean) ** 2 for entry in entries) / (len(entries) - 1)
        total = total + variance / ((mean**2 if dispersion == "cv2" else mean) + 1e-10)
    return total
