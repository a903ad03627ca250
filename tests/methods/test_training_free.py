"""Training-free methods: each classifier equals that of the pooled data, in any order of reports; the backbone does not run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from sklearn.linear_model import Ridge

METHOD = tiny.plugins().classes["method"]
F64 = torch.float64


def pooled(small: tiny.MiniRun, clients: range | tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The features [n, D] and labels [n] of some clients' training parts."""
    samples = torch.tensor([i for k in clients for i in small.train[k]])
    return small.model.features[samples], small.model.labels[samples]


def score(small: tiny.MiniRun, clients: tuple[int, ...], index: torch.Tensor) -> torch.Tensor:
    sent = small.server.send(torch.tensor(clients))
    prior = small.model.method.logit_prior == "eval"
    return small.model.forward(sent | small.server.read(), index, prior).logits


def test_fedncm_is_the_pooled_class_means_in_any_order():
    small = tiny.mini_run(METHOD["fedncm"](temperature=0.5))
    small.report_statistics((3, 0))
    small.report_statistics((4,))
    z, y = pooled(small, (0, 3, 4))
    for c in range(tiny.CLASSES):
        expected = z[y == c].mean(0) if (y == c).any() else torch.zeros(32, dtype=F64)
        assert (small.server.values["prototype"][c] - expected).abs().max() < 1e-12
    x, mu = small.model.features[50], small.server.values["prototype"]
    expected = torch.stack([x @ m / (x.norm() * m.norm()) for m in mu]) / 0.5
    assert (score(small, (1,), torch.tensor([[50]]))[0, 0] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("ridge", [0.01, 3.0])
def test_fed3r_is_ridge_regression_on_the_pooled_features(ridge):
    """scikit-learn's Ridge on the features with a constant 1 beside them, whose weight is penalised like the others."""
    small = tiny.mini_run(METHOD["fed3r"](ridge=ridge, normalize=False))
    small.report_statistics((5, 1))
    small.report_statistics((0, 2, 3, 4))
    z, y = pooled(small, range(tiny.CLIENTS))
    z1 = np.hstack([z.numpy(), np.ones((len(z), 1))])
    hot = np.eye(tiny.CLASSES)[y.numpy()]
    fitted = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(z1, hot).coef_  # [C, D+1]
    weights = torch.cat([small.server.values["weight"], small.server.values["bias"][:, None]], 1)
    assert np.abs(weights.numpy() - fitted).max() < 1e-8
    normal = tiny.mini_run(METHOD["fed3r"](ridge=ridge))
    normal.report_statistics(range(tiny.CLIENTS))
    norm = np.linalg.norm(fitted[:, :-1], axis=1, keepdims=True)
    weights = torch.cat([normal.server.values["weight"], normal.server.values["bias"][:, None]], 1)
    assert np.abs(weights.numpy() - fitted / norm).max() < 1e-8


def test_fedcof_covariance_by_hand():
    """One class, D = 1 and 2: clients with n = 1, 4 samples and means (0, 0), (5, 0): mu = (4, 0); with K - 1 = 1,
    S = 1 (4, 0)(4, 0)^T + 4 (1, 0)(1, 0)^T = diag(20, 0). N = 5: G = 4 (S + gamma I) + 5 mu mu^T."""
    method = METHOD["fedcof"](shrinkage=0.5)
    means = torch.tensor([[0.0, 0.0], [5.0, 0.0]], dtype=F64)
    G, B = method.gram(means, torch.tensor([0, 0]), torch.tensor([1.0, 4.0], dtype=F64), classes=1)
    assert G.tolist() == [[4 * 20.5 + 5 * 16, 0.0], [0.0, 4 * 0.5]]
    assert B.tolist() == [[20.0, 0.0]]


def test_fedcof_classifier_by_hand():
    """Two classes, one of which a single client holds, and a third that nobody has shown.
    Class 0: n = 1, 1 at (2, 0), (0, 2): mu = (1, 1), S = (1,-1)(1,-1)^T + (-1,1)(-1,1)^T = [[2,-2],[-2,2]], N - 1 = 1.
    Class 1: n = 3 at (0, 4): S = 0, N - 1 = 2. gamma = 1: sum = [[2,-2],[-2,2]] + (1 + 2) I = [[5,-2],[-2,5]].
    Total (2, 2) + (0, 12) = (2, 14), N = 5: N mu mu^T = [[4, 28],[28, 196]]/5. G = [[5.8, 3.6],[3.6, 44.2]]."""
    method = METHOD["fedcof"](shrinkage=1.0)
    means = torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, 2.0]], dtype=F64)
    of, n = torch.tensor([0, 1, 0]), torch.tensor([1.0, 3.0, 1.0], dtype=F64)
    G, B = method.gram(means, of, n, classes=3)
    assert torch.allclose(G, torch.tensor([[5.8, 3.6], [3.6, 44.2]], dtype=F64))
    assert B.tolist() == [[2.0, 2.0], [0.0, 12.0], [0.0, 0.0]]
    det = 5.8 * 44.2 - 3.6**2
    first = torch.tensor([(44.2 * 2 - 3.6 * 2) / det, (-3.6 * 2 + 5.8 * 2) / det], dtype=F64)
    W = method.classifier(means, of, n, classes=3)
    assert torch.allclose(W[0], first / first.norm())
    assert torch.equal(W[2], torch.zeros(2, dtype=F64))


def test_fedcof_covariance_is_unbiased():
    """1,500 federations of 6 uneven clients, N(mu, Sigma) in the plane: the mean estimate is Sigma to 3 standard errors."""
    draw = np.random.default_rng(0)
    root = np.array([[1.0, 0.0], [0.8, 0.6]])  # Sigma = root root^T = [[1, .8], [.8, 1]]
    sizes, trials = np.array([1, 2, 3, 5, 8, 13]), 1500
    method = METHOD["fedcof"](shrinkage=0.0)
    estimates = np.zeros((trials, 2, 2))
    for t in range(trials):
        means = np.stack([(draw.normal(size=(n, 2)) @ root.T + [3.0, -1.0]).mean(0) for n in sizes])
        n = torch.from_numpy(sizes).double()
        G, B = method.gram(torch.from_numpy(means), torch.zeros(6, dtype=torch.long), n, classes=1)
        mu = B[0] / n.sum()
        estimates[t] = ((G - n.sum() * torch.outer(mu, mu)) / (n.sum() - 1)).numpy()
    # the estimate of a variance s with 5 degrees of freedom has the variance 2 s^2 / 5
    assert np.abs(estimates.mean(0) - root @ root.T).max() < 3 * math.sqrt(2 / 5 / trials)


def test_fedcof_needs_no_order_and_no_matrix_per_class():
    small, other = tiny.mini_run(METHOD["fedcof"]()), tiny.mini_run(METHOD["fedcof"]())
    small.report_statistics((5, 1))
    small.report_statistics((0, 2, 3, 4))
    other.report_statistics(range(tiny.CLIENTS))
    assert (small.server.values["weight"] - other.server.values["weight"]).abs().max() < 1e-9
    pairs = sum(len(set(small.labels[part])) for part in small.train)
    assert small.server.values["means"].shape == (pairs, 32)
    biggest = max(value.numel() for value in small.server.values.values())
    assert biggest == max(pairs, tiny.CLASSES) * 32


@pytest.mark.parametrize("name", ["fedncm", "fed3r", "fedcof"])
def test_the_log_prior_is_added_to_scores_of_unit_spread(name):
    plain = tiny.mini_run(METHOD[name](temperature=0.5), dtype=F64)
    prior = tiny.mini_run(METHOD[name](temperature=0.5, logit_prior="eval"), dtype=F64)
    for small in (plain, prior):
        small.report_statistics(range(tiny.CLIENTS))
    index = torch.tensor([[40, 41, 50]])
    a, b = score(plain, (4,), index), score(prior, (4,), index)
    counts = np.bincount(plain.labels[plain.train[4]], minlength=tiny.CLASSES)
    pi = torch.from_numpy((1 - 1e-6) * counts / counts.sum() + 1e-6 / tiny.CLASSES)
    assert (b - a - pi.log()).abs().max() < 1e-6  # the prior is kept in single precision
    if name != "fedncm":
        assert torch.allclose(a.mean(-1), torch.zeros(1, 3, dtype=F64), atol=1e-9)
        assert torch.allclose(a.std(-1, correction=0), torch.full((1, 3), 2.0, dtype=F64))  # 1 / tau


@pytest.mark.parametrize("name", ["fedncm", "fed3r", "fedcof"])
def test_nothing_runs_through_the_backbone(name, monkeypatch):
    small = tiny.mini_run(METHOD[name]())
    monkeypatch.setattr(type(small.model.backbone), "forward", None)  # any call would fail
    small.report_statistics(range(tiny.CLIENTS))
    assert small.trainer.phases == []
    _, y = pooled(small, range(tiny.CLIENTS))
    index = torch.tensor([i for part in small.train for i in part])[None]
    answers = score(small, (0,), index)[0].argmax(-1)
    assert torch.equal(small.model.labels[index[0]], y)
    assert (answers == y).double().mean() > 0.4  # 37 noise images that it has seen, 5 classes
