"""Slope and curvature forms against autograd in float64, at extreme logits, and what torch's losses map to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stepsize.errors import MeasurementError
from stepsize.losses import AutogradLoss, BCEWithLogits, CrossEntropy, SquaredError, WeightedRows, as_loss

G = torch.Generator().manual_seed(0)
Z1, T1 = torch.randn(2, 7, 1, generator=G, dtype=torch.float64) * 3
Z5, T5 = torch.randn(2, 7, 5, generator=G, dtype=torch.float64) * 3
CLASSES = torch.randint(5, (7,), generator=G)
SOFT = torch.rand(7, 5, generator=G, dtype=torch.float64)
HARD = torch.randint(2, (7, 5), generator=torch.Generator().manual_seed(1))

FORMS = {
    "bce": (BCEWithLogits(), Z1, torch.rand(7, 1, generator=G).double(), T1),
    "bce_flat": (BCEWithLogits(), Z1[:, 0], torch.randint(2, (7,), generator=G), T1[:, 0]),
    "bce_column_for_row": (BCEWithLogits(), Z1, torch.randint(2, (7,), generator=G), T1),
    "bce_multilabel": (BCEWithLogits(), Z5, SOFT, T5),
    "bce_weighted": (BCEWithLogits(positive_weight=3.0, negative_weight=0.3, label_smoothing=0.1), Z5, HARD, T5),
    "cross_entropy": (CrossEntropy(), Z5, CLASSES, T5),
    "cross_entropy_unnormalized": (CrossEntropy(), Z5, SOFT, T5),
    "bce_weighted_rows": (
        WeightedRows(BCEWithLogits(positive_weight=3.0, label_smoothing=0.1)),
        Z1,
        torch.stack([torch.randint(2, (7,), generator=G).double(), torch.rand(7, generator=G).double() * 9], 1),
        T1,
    ),
    "cross_entropy_weighted_rows": (
        WeightedRows(nn.CrossEntropyLoss()),  # pyright: ignore[reportArgumentType]
        Z5,
        torch.stack([CLASSES.double(), torch.rand(7, generator=G).double() * 9], 1),
        T5,
    ),
    "squared": (SquaredError(), Z5, SOFT, T5),
    "squared_halved": (SquaredError(halved=True), Z5, SOFT, T5),
}


@pytest.mark.parametrize("name", FORMS)
def test_closed_forms_are_the_derivatives_of_the_loss_itself(name):
    """Row by row, with the full Hessian of every row written out."""
    loss, z, y, t = FORMS[name]
    for i in range(len(z)):
        row, target = slice(i, i + 1), y[i : i + 1]

        def value(at: torch.Tensor, target=target) -> torch.Tensor:
            return loss.per_sample(at, target)[0]

        gradient = torch.func.grad(value)(z[row]).flatten()
        hessian = torch.func.hessian(value)(z[row]).reshape(len(gradient), len(gradient))
        along = t[row].flatten()
        assert loss.slope(z, y, t)[i].item() == pytest.approx((gradient @ along).item(), rel=1e-12)
        assert loss.curvature(z, y, t)[i].item() == pytest.approx((along @ hessian @ along).item(), rel=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_autograd_loss_gives_the_same_forms(name):
    loss, z, y, t = FORMS[name]
    by_autograd = AutogradLoss(loss.per_sample)
    torch.testing.assert_close(by_autograd.per_sample(z, y), loss.per_sample(z, y))
    torch.testing.assert_close(by_autograd.slope(z, y, t), loss.slope(z, y, t), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(by_autograd.curvature(z, y, t), loss.curvature(z, y, t), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("torch_loss", "name"),
    [(nn.BCEWithLogitsLoss(), "bce_multilabel"), (nn.CrossEntropyLoss(), "cross_entropy"), (nn.MSELoss(), "squared")],
)
def test_mean_over_rows_is_torch_s_loss(torch_loss, name):
    _, z, y, _ = FORMS[name]
    torch.testing.assert_close(as_loss(torch_loss).per_sample(z, y).mean(), torch_loss(z, y))


@pytest.mark.parametrize(
    "module",
    [nn.L1Loss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))],
)
def test_a_loss_without_closed_form_says_what_to_give_instead(module):
    with pytest.raises(MeasurementError, match="AutogradLoss"):
        as_loss(module)


def test_class_weights_and_smoothing_are_what_torch_makes_of_its_own_options():
    """`pos_weight` for clicks; and for two classes, `CrossEntropyLoss` with smoothing and weights, unreduced."""
    z, y = Z1[:, 0], torch.randint(2, (7,), generator=G).double()
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0).double())
    torch.testing.assert_close(BCEWithLogits(positive_weight=3.0).mean(z, y), weighted(z, y), rtol=1e-14, atol=0)
    both = torch.stack([torch.zeros_like(z), z], 1)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.2)(both, y.long())
    torch.testing.assert_close(BCEWithLogits(label_smoothing=0.2).mean(z, y), smoothed, rtol=1e-14, atol=0)


def test_the_plain_mean_is_torch_s_to_the_bit():
    z, y = torch.randn(1001, generator=G, requires_grad=True), torch.randint(2, (1001,), generator=G).float()
    theirs = nn.functional.binary_cross_entropy_with_logits(z, y)
    ours = BCEWithLogits().mean(z, y)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(loss, z)[0] for loss in (ours, theirs)))


def test_curvature_of_a_confident_click_keeps_its_digits_in_float32():
    z, t = torch.tensor([17.0, 40.0, -80.0]), torch.ones(3)
    exact = torch.sigmoid(z.double()) * torch.sigmoid(-z.double())
    torch.testing.assert_close(BCEWithLogits().curvature(z, z, t).double(), exact, rtol=1e-6, atol=0)


def test_curvature_is_never_negative_where_all_logits_move_together():
    z = torch.randn(200, 5, generator=G)
    t = 1e3 + 1e-4 * torch.randn(200, 5, generator=G)
    y = torch.zeros(200, dtype=torch.long)
    curvature = CrossEntropy().curvature(z, y, t)
    assert (curvature >= 0).all()
    assert (curvature <= CrossEntropy().curvature_error(z, y, t, torch.finfo(torch.float32).eps)).all()
    apart = torch.randn(200, 5, generator=G)
    certain = CrossEntropy().curvature(z, y, apart)
    assert (certain > 1e3 * CrossEntropy().curvature_error(z, y, apart, torch.finfo(torch.float32).eps)).all()


def test_ignored_rows_count_for_nothing_in_sums_and_in_the_mean():
    y = CLASSES.clone()
    y[2] = -100
    rest = [0, 1, 3, 4, 5, 6]
    for form in (CrossEntropy().slope, CrossEntropy().curvature):
        assert form(Z5, y, T5)[2] == 0
        alone = form(Z5[rest], CLASSES[rest], T5[rest])
        torch.testing.assert_close(form(Z5, y, T5).mean(), alone.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(CrossEntropy().per_sample(Z5, y).mean(), nn.CrossEntropyLoss()(Z5, y))


def test_a_compiled_loss_has_the_curvature_of_what_it_was_compiled_from() -> None:
    """torch takes the second derivative of compiled parts for zero; whole or inside another function."""

    def cubed(z: Tensor, y: Tensor) -> Tensor:
        return (z - y).pow(3).sum(1)

    compiled = torch.compile(cubed, backend="aot_eager")
    for function in (compiled, lambda z, y: compiled(z, y) + cubed(z, y) - cubed(z, y)):
        torch.testing.assert_close(
            AutogradLoss(function).curvature(Z5, SOFT, T5), AutogradLoss(cubed).curvature(Z5, SOFT, T5)
        )


def test_a_loss_linear_in_its_logits_has_no_curvature():
    linear = AutogradLoss(lambda z, y: (y * z).sum(1))
    assert torch.equal(linear.slope(Z5, SOFT, T5), (SOFT * T5).sum(1))
    assert torch.equal(linear.curvature(Z5, SOFT, T5), torch.zeros(7).double())


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(MeasurementError, match=r"\(7, 5\) with targets \(7,\)"):
        BCEWithLogits().slope(Z5, CLASSES, T5)
    with pytest.raises(MeasurementError, match="class indices"):
        CrossEntropy().curvature(Z1[:, 0], CLASSES, T1[:, 0])
    with pytest.raises(MeasurementError, match="one loss a row"):
        AutogradLoss(lambda z, y: (z - y).square().mean()).slope(Z5, SOFT, T5)
