"""Minimising a function of a few weights without its gradient, in a budget of evaluations."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from coadapt._errors import InputError, nearest
from coadapt.lora_hub import Method

Vector = NDArray[np.float64]
Bounds = tuple[float, float]

# Standard deviation of the first population as a whole, in widths of the bounds. Tried on smooth
# functions with 40 evaluations: larger ones find nothing better than the start from 10 weights on.
_FIRST_STEP = 0.2
_COBYLA_STEP = 1 / 6  # of the first simplex, in the same unit
_COBYLA_LEAST = 1e-6  # where its steps stop getting smaller
_WORST = 1e20  # what nevergrad is told of a value that is not finite; it warns of larger ones


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Args:
        weights: (K,) the best point that was evaluated.
        value: of the function there.
        history: the values in the order of evaluation, the first at zero weights; infinite where
            the function was not finite.
        method: which search it was, ``nevergrad``, ``cobyla`` or ``built_in``.
    """

    weights: tuple[float, ...]
    value: float
    history: tuple[float, ...]
    method: str


def minimize(
    function: Callable[[Vector], float],
    num_weights: int,
    *,
    budget: int,
    bounds: Bounds = (-1.5, 1.5),
    seed: int,
    method: Method = "auto",
) -> Found:
    """Minimise a function of K weights within bounds, by exactly ``budget`` evaluations.

    Zero weights are evaluated first, and the best point evaluated is returned, so the result is
    never worse than they are. ``cobyla`` is SciPy's (Powell, 1994), deterministic, begun anew from
    the best point with a smaller step wherever it ends early. ``built_in`` is a CMA-ES (Hansen,
    "The CMA evolution strategy: a tutorial", arXiv 1604.00772v2, appendix A) whose points are
    clipped to the bounds. ``nevergrad`` is that library's NGOpt, LoRAHub's choice, which picks a
    method by K and budget. Where that is a deterministic one, as COBYLA for 40 evaluations in
    version 1.0.12, the seed changes nothing.
    ``auto`` takes nevergrad if it is installed, else cobyla: for 40 evaluations they are the same
    method, and better than the evolution strategy.

    Not for functions whose gradient is at hand, nor for many weights: 40 evaluations tell little of
    a function of 20.

    Args:
        function: of (K,) float64 weights; a value that is not finite counts as worst.
        num_weights: K, at least 1.
        budget: of evaluations, at least 1.
        bounds: of each weight, low < 0 < high.
        seed: of what is drawn.
        method: ``auto``, ``nevergrad``, ``cobyla`` or ``built_in``.

    Raises:
        InputError: if an argument is out of range, the function is not finite at zero weights, or
            nevergrad is asked for and not installed, or fails.

    Example:
        >>> found = minimize(
        ...     lambda w: float(((w - 0.5) ** 2).sum()), 2, budget=60, seed=0, method="built_in"
        ... )
        >>> found.history[0], found.value < 0.01, len(found.history)
        (0.5, True, 60)
    """
    _check(num_weights, budget, bounds, method)
    if method == "auto":
        method = "nevergrad" if find_spec("nevergrad") else "cobyla"
    evaluate = _Budget(function, num_weights, budget)
    try:
        if method == "nevergrad":
            _run_nevergrad(evaluate, num_weights, bounds, seed)
        elif method == "cobyla":
            _run_cobyla(evaluate, num_weights, bounds)
        else:
            _run_cma(evaluate, num_weights, bounds, np.random.default_rng(seed))
    except _Spent:
        pass
    return Found(
        weights=tuple(evaluate.best.tolist()),
        value=evaluate.least,
        history=tuple(evaluate.history),
        method=method,
    )


def _check(num_weights: int, budget: int, bounds: Bounds, method: str) -> None:
    for name, value in (("num_weights", num_weights), ("budget", budget)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    low, high = bounds
    if not (-math.inf < low < 0 < high < math.inf):
        raise InputError(f"bounds must be finite with low < 0 < high, not {bounds}")
    if method not in get_args(Method):
        raise InputError(f"unknown search method '{method}'{nearest(method, get_args(Method))}")


class _Spent(Exception):
    """Every evaluation of the budget was made."""


class _Budget:
    """Calls a function as often as it may be called, and keeps the best of what it gave."""

    def __init__(self, function: Callable[[Vector], float], num_weights: int, budget: int) -> None:
        self._function, self.budget = function, budget
        self.best, self.least = np.zeros(num_weights), math.inf
        self.history: list[float] = []

    def __call__(self, point: Vector) -> float:
        """Return the function's value, or infinity where it is not finite."""
        if len(self.history) == self.budget:
            raise _Spent
        value = float(self._function(point.copy()))
        if not math.isfinite(value):
            if not self.history:
                raise InputError(f"the function is {value} at zero weights, where a search starts")
            value = math.inf
        self.history.append(value)
        if value < self.least:
            self.best, self.least = point.copy(), value
        return value


def _run_cobyla(evaluate: _Budget, n: int, bounds: Bounds) -> None:
    """Run COBYLA from zero weights until it is stopped."""
    step = _COBYLA_STEP * (bounds[1] - bounds[0])
    while True:
        optimize.minimize(
            lambda point: min(evaluate(np.clip(point, *bounds)), _WORST),
            evaluate.best,
            method="COBYLA",
            bounds=[bounds] * n,
            options={"rhobeg": step, "tol": 1e-3 * step, "maxiter": 10 * evaluate.budget},
        )
        step = max(step / 2, _COBYLA_LEAST)


def _run_nevergrad(evaluate: _Budget, n: int, bounds: Bounds, seed: int) -> None:
    """Run NGOpt as LoRAHub does, but seeded, until it is stopped."""
    if not find_spec("nevergrad"):
        raise InputError(
            "method 'nevergrad' needs the package nevergrad, which is not installed; "
            "pip install 'coadapt[hub]', or take method 'cobyla'"
        )
    with warnings.catch_warnings():  # of libraries that it uses
        warnings.simplefilter("ignore")
        import nevergrad  # pyright: ignore[reportMissingImports]
    weights: Any = nevergrad.p.Array(init=np.zeros(n), lower=bounds[0], upper=bounds[1])
    weights.random_state = np.random.RandomState(seed % 2**32)
    registry: Any = nevergrad.optimizers.registry
    optimizer = _quietly(registry["NGOpt"], weights, budget=evaluate.budget)
    while True:
        asked = _quietly(optimizer.ask)
        point = np.array(asked.value, dtype=np.float64)
        if point.any() and not evaluate.history:  # most of its methods begin at zero themselves
            evaluate(np.zeros(n))
        _quietly(optimizer.tell, asked, min(evaluate(point), _WORST))


def _quietly(call: Callable[..., Any], *args: object, **options: object) -> Any:
    """Call nevergrad without its warnings, of methods that it chose itself and of ending early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(*args, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"nevergrad's NGOpt failed with {type(error).__name__}: {error}; take method "
                "'cobyla'"
            ) from error


@dataclass(frozen=True)
class _Rates:
    """The constants of CMA-ES in n dimensions: table 1 of the tutorial, positive weights alone."""

    w: Vector  # (mu,) of the better half of a population of size
    size: int
    mu_eff: float
    c_s: float
    d_s: float
    c_c: float
    c_1: float
    c_mu: float
    length: float  # E ||N(0, I)||

    @classmethod
    def of(cls, n: int) -> "_Rates":
        size = 4 + int(3 * math.log(n))
        raw = math.log((size + 1) / 2) - np.log(np.arange(1, size // 2 + 1))
        w = raw / raw.sum()
        mu = float(1 / (w**2).sum())
        c_s = (mu + 2) / (n + mu + 5)
        c_1 = 2 / ((n + 1.3) ** 2 + mu)
        return cls(
            w=w,
            size=size,
            mu_eff=mu,
            c_s=c_s,
            d_s=1 + 2 * max(0.0, math.sqrt((mu - 1) / (n + 1)) - 1) + c_s,
            c_c=(4 + mu / n) / (n + 4 + 2 * mu / n),
            c_1=c_1,
            c_mu=min(1 - c_1, 2 * (0.25 + mu + 1 / mu - 2) / ((n + 2) ** 2 + mu)),
            length=math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
        )


def _run_cma(evaluate: _Budget, n: int, bounds: Bounds, rng: np.random.Generator) -> None:
    """Run the (mu/mu_w, lambda)-CMA-ES, equations 38 to 47 of the tutorial, until it is stopped.

    m (n,) mean, sigma step size, C (n, n) covariance, p_s and p_c (n,) their paths, y (mu, n) the
    steps to the better half of a population, in units of sigma.
    """
    r = _Rates.of(n)
    m, C, p_s, p_c = np.zeros(n), np.eye(n), np.zeros(n), np.zeros(n)
    sigma = _FIRST_STEP * (bounds[1] - bounds[0]) / math.sqrt(n)
    evaluate(m)
    for generation in count(1):
        values, axes = np.linalg.eigh(C)
        deviations = np.sqrt(values.clip(np.finfo(np.float64).tiny))
        z = rng.standard_normal((r.size, n))
        points = np.clip(m + sigma * (z * deviations) @ axes.T, *bounds)  # 38 to 40
        order = np.argsort([evaluate(point) for point in points], kind="stable")
        y = (points[order[: len(r.w)]] - m) / sigma
        step = r.w @ y  # 41
        m = m + sigma * step  # 42
        whitened = axes @ (axes.T @ step / deviations)
        p_s = (1 - r.c_s) * p_s + math.sqrt(r.c_s * (2 - r.c_s) * r.mu_eff) * whitened  # 43
        norm = float(np.linalg.norm(p_s))
        shrunk = math.sqrt(1 - (1 - r.c_s) ** (2 * generation))
        h = float(norm / shrunk < (1.4 + 2 / (n + 1)) * r.length)
        sigma *= math.exp(r.c_s / r.d_s * (norm / r.length - 1))  # 44
        p_c = (1 - r.c_c) * p_c + h * math.sqrt(r.c_c * (2 - r.c_c) * r.mu_eff) * step  # 45
        kept = 1 + r.c_1 * (1 - h) * r.c_c * (2 - r.c_c) - r.c_1 - r.c_mu
        C = kept * C + r.c_1 * np.outer(p_c, p_c) + r.c_mu * (y.T * r.w) @ y  # 47
