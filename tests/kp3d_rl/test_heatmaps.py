"""Heat maps: against loops, and cell centres against what real convolutions see."""

import math

import pytest
import torch

from kp3d_rl.heatmaps import (
    CellGrid,
    entropy,
    expected_value,
    gaussian_maps,
    pool_to_cells,
    soft_argmax,
    softmax2d,
    spread,
    standardise,
)
from kp3d_rl.networks import FAST_LAYERS, PAPER_LAYERS, grids

STACKS = {
    "original": ([(4, 2, 0), (3, 2, 0), (4, 2, 0)], 108),
    "stride 4": ([(4, 2, 1), (3, 1, 1), (4, 2, 1), (3, 1, 1)], 64),
    "odd": ([(5, 3, 1), (2, 1, 0), (3, 2, 2)], 71),
}
ROWS, COLS = CellGrid(6, 4.0, 2.0), CellGrid(9, 3.0, 5.5)


def convolutions(layers):
    """A real stack with positive weights that are symmetric in themselves (all ones) and no bias."""
    stack = torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, k, s, p, bias=False) for k, s, p in layers)).double()
    for layer in stack:
        torch.nn.init.ones_(layer.weight)
    return stack


def random_heat(*shape, dtype=torch.float64, seed=0):
    return softmax2d(3 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("name", STACKS)
def test_cell_centres_are_the_receptive_field_centres_of_real_convolutions(name):
    layers, size = STACKS[name]
    grid = CellGrid.from_layers(layers, size)
    image = torch.zeros(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    out = convolutions(layers)(image)
    assert out.shape[-2:] == (grid.cells, grid.cells)
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    field = 1 + sum((k - 1) * math.prod(s for _, s, _ in layers[:i]) for i, (k, _, _) in enumerate(layers))
    checked = 0
    for cell, centre in enumerate(grid.centres(pixels).tolist()):
        if centre - field / 2 < 0 or centre + field / 2 > size:
            continue  # the receptive field is cut at the border
        seen = torch.autograd.grad(out[0, 0, cell, cell], image, retain_graph=True)[0][0, 0]
        for weight in (seen.sum(0), seen.sum(1)):
            assert abs(float((weight * pixels).sum() / weight.sum()) - centre) < 1e-9
            touched = pixels[weight > 0]
            assert float(touched[0] + touched[-1]) / 2 == pytest.approx(centre, abs=1e-9)
        checked += 1
    assert checked >= 4


def test_known_grids():
    assert CellGrid.from_layers(*STACKS["original"]) == CellGrid(12, 8.0, 10.0)
    assert CellGrid.from_layers(*STACKS["stride 4"]) == CellGrid(16, 4.0, 2.0)
    assert CellGrid.from_layers([], 5).centres().tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    with pytest.raises(ValueError, match="layer 1"):
        CellGrid.from_layers([(4, 2, 0), (9, 1, 0)], 16)


def test_means_of_cells_reach_from_the_first_centre_to_the_last() -> None:
    places = torch.tensor([1.9, 2.1, 10.0, 21.9, 22.1])  # centres of ROWS: 2, 6, …, 22
    assert ROWS.reaches(places).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("name", ["original", "stride 4"])
def test_shifting_the_input_by_one_stride_moves_uv_by_exactly_that_many_pixels(name):
    layers, size = STACKS[name]
    grid = CellGrid.from_layers(layers, size)
    stack = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, k, s, p, bias=False) for k, s, p in layers)).double()
    stride, middle = int(grid.stride), size // 2
    image = torch.zeros(1, 3, size, size, dtype=torch.float64)
    image[..., middle - 6 : middle + 4, middle - 9 : middle + 5] = torch.rand(1, 3, 10, 14, dtype=torch.float64)
    shifted = torch.roll(image, (stride, -stride), (-2, -1))
    with torch.no_grad():
        # The softmax of log x is x / sum(x): exactly 0 where the stack sees only black, so that all of it moves.
        uv, moved = (soft_argmax(softmax2d(stack(x).square().log()), grid, grid) for x in (image, shifted))
    expected = torch.tensor([-grid.stride, grid.stride], dtype=torch.float64).expand_as(uv)
    torch.testing.assert_close(moved - uv, expected, atol=1e-9, rtol=0)


def test_a_blob_is_found_where_it_is_in_the_image():
    """All-ones layers smooth a symmetric blob symmetrically, so its centre stays where it was, in pixels."""
    for name in ("original", "stride 4"):
        layers, size = STACKS[name]
        grid = CellGrid.from_layers(layers, size)
        pixels = CellGrid(size, 1.0, 0.5)
        uv = torch.tensor([size / 2 + 3.3, size / 2 - 5.7], dtype=torch.float64)
        one = torch.ones((), dtype=torch.float64)
        image = gaussian_maps(uv, 6 * one, one, pixels, pixels)
        heat = convolutions(layers)(image[None, None])
        found = soft_argmax(heat / heat.sum(), grid, grid)[0, 0]
        assert (found - uv).abs().max() < 0.05


def test_softmax2d_sums_to_one_over_both_dimensions():
    logits = torch.randn(2, 3, 4, 6, 9, dtype=torch.float64)
    heat = softmax2d(logits)
    expected = logits.exp() / logits.exp().sum((-2, -1), keepdim=True)
    torch.testing.assert_close(heat, expected)
    assert softmax2d(1000 * logits).isfinite().all()
    channels_last = torch.randn(2, 4, 6, 9).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(softmax2d(channels_last), softmax2d(channels_last.contiguous()))


def test_soft_argmax_and_spread_agree_with_loops():
    heat = random_heat(2, 3, 6, 9)
    uv, std = soft_argmax(heat, ROWS, COLS), spread(heat, ROWS, COLS)
    assert uv.shape == std.shape == (2, 3, 2)
    for b in range(2):
        for k in range(3):
            mean, square = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
            for i in range(6):
                for j in range(9):
                    at = torch.tensor([5.5 + 3.0 * j, 2.0 + 4.0 * i], dtype=torch.float64)
                    mean += heat[b, k, i, j] * at
                    square += heat[b, k, i, j] * at**2
            torch.testing.assert_close(uv[b, k], mean)
            torch.testing.assert_close(std[b, k], (square - mean**2).sqrt())


def test_soft_argmax_of_one_hot_maps_is_the_cell_centre():
    heat = torch.eye(54, dtype=torch.float64).view(54, 6, 9)
    uv = soft_argmax(heat, ROWS, COLS).view(6, 9, 2)
    assert uv[2, 5].tolist() == [5.5 + 15, 2.0 + 8]
    assert spread(heat, ROWS, COLS).max() < 1e-5
    assert entropy(heat).abs().max() == 0


def test_expected_value_and_entropy_agree_with_loops():
    heat, values = random_heat(4, 6, 9), torch.randn(4, 6, 9, dtype=torch.float64)
    for k in range(4):
        pairs = list(zip(heat[k].flatten().tolist(), values[k].flatten().tolist(), strict=True))
        assert expected_value(heat, values)[k].item() == pytest.approx(sum(h * x for h, x in pairs))
        assert entropy(heat)[k].item() == pytest.approx(-sum(h * math.log(h) for h, _ in pairs))
    assert entropy(torch.full((6, 9), 1 / 54)).item() == pytest.approx(math.log(54), rel=1e-6)


def test_gaussian_maps_agree_with_the_formula_cell_by_cell():
    generator = torch.Generator().manual_seed(0)
    uv = torch.rand(2, 3, 2, generator=generator, dtype=torch.float64) * 30
    sigma = torch.rand(2, 3, generator=generator, dtype=torch.float64) * 5 + 1
    height = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    maps = gaussian_maps(uv, sigma, height, ROWS, COLS)
    assert maps.shape == (2, 3, 6, 9)
    for b in range(2):
        for k in range(3):
            for i in range(6):
                for j in range(9):
                    square = (5.5 + 3 * j - uv[b, k, 0]) ** 2 + (2 + 4 * i - uv[b, k, 1]) ** 2
                    expected = height[b, k] * math.exp(-square / (2 * sigma[b, k] ** 2))
                    assert maps[b, k, i, j].item() == pytest.approx(expected.item(), abs=1e-12)


def test_gaussian_maps_and_soft_argmax_are_inverse_inside_the_grid():
    grid = CellGrid(32, 2.0, 1.0)
    uv = torch.rand(5, 2, dtype=torch.float64) * 20 + 22
    sigma = torch.full((5,), 3.0, dtype=torch.float64)
    maps = gaussian_maps(uv, sigma, torch.ones_like(sigma), grid, grid)
    heat = maps / maps.sum((-2, -1), keepdim=True)
    torch.testing.assert_close(soft_argmax(heat, grid, grid), uv, atol=1e-3, rtol=0)
    torch.testing.assert_close(spread(heat, grid, grid), sigma.unsqueeze(-1).expand(5, 2), atol=1e-2, rtol=0)


def test_far_outside_points_give_empty_maps_and_finite_gradients():
    uv = torch.tensor([[1e6, -1e6]], requires_grad=True)
    maps = gaussian_maps(uv, torch.ones(1), torch.ones(1), ROWS, COLS)
    maps.sum().backward()
    assert maps.abs().max() == 0 and uv.grad.isfinite().all()


def test_gradients():
    logits = torch.randn(2, 6, 9, dtype=torch.float64, requires_grad=True)
    for function in (
        lambda x: soft_argmax(softmax2d(x), ROWS, COLS),
        lambda x: spread(softmax2d(x), ROWS, COLS),
        lambda x: entropy(softmax2d(x)),
        lambda x: expected_value(softmax2d(x), x),
    ):
        assert torch.autograd.gradcheck(function, logits)
    uv = (torch.rand(2, 2, dtype=torch.float64) * 20).requires_grad_()
    sigma, height = ((torch.rand(2, dtype=torch.float64) + 2).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda *x: gaussian_maps(*x, ROWS, COLS), (uv, sigma, height))


def test_gradients_stay_finite_on_maps_that_underflow_to_one_cell():
    logits = torch.zeros(6, 9)
    logits[2, 3] = 500
    logits.requires_grad_()
    heat = softmax2d(logits)
    (spread(heat, ROWS, COLS).sum() + entropy(heat) + soft_argmax(heat, ROWS, COLS).sum()).backward()
    assert logits.grad.isfinite().all()


def test_float32_agrees_with_float64_and_keeps_its_dtype():
    heat = random_heat(3, 6, 9)
    for function in (lambda h: soft_argmax(h, ROWS, COLS), lambda h: spread(h, ROWS, COLS), entropy):
        single = function(heat.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), function(heat), atol=1e-4, rtol=1e-5)


def test_standardised_maps_have_mean_zero_and_deviation_one_and_flat_maps_stay_flat():
    logits = torch.randn(4, 3, 6, 7, dtype=torch.float64) * torch.tensor([0.5, 5.0, 50.0])[:, None, None] + 3.0
    made = standardise(logits, epsilon=0.0)
    assert torch.allclose(made.mean((-2, -1)), torch.zeros(4, 3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(made.std((-2, -1), unbiased=False), torch.ones(4, 3, dtype=torch.float64))
    assert torch.allclose(standardise(logits * 9.0 + 1.0, epsilon=0.0), made)
    assert torch.equal(standardise(torch.full((1, 4, 4), 2.0)), torch.zeros(1, 4, 4))


def test_standardising_is_sharper_on_a_rare_response_than_on_a_common_one():
    rare, common = torch.zeros(8, 8), torch.zeros(8, 8)
    rare[2, 3] = 1.0
    common[:4] = 1.0
    assert softmax2d(3.0 * standardise(rare))[2, 3] > 0.99
    assert softmax2d(3.0 * standardise(common)).max() < 0.05


@pytest.mark.parametrize("layers", [FAST_LAYERS, PAPER_LAYERS])
def test_pooling_to_cells_is_the_mean_around_each_centre_also_in_a_window(layers) -> None:  # noqa: ANN001
    """Against a naive loop over cells; half-integer centres fall between pixels' squares, hence whole ones only."""
    rows, columns = grids(layers, 64, 72)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 64, 72, generator=generator)
    offset = torch.tensor([[0.0, 0.0], [3.0, -2.0]])
    found = pool_to_cells(image, rows, columns, offset)
    assert torch.allclose(found[:1], pool_to_cells(image[:1], rows, columns, offset[:1]), atol=1e-6)  # the short way
    stride = int(rows.stride)
    for n in range(2):
        padded = torch.nn.functional.pad(image[n], (40, 40, 40, 40))
        for i, y in enumerate(rows.centres().tolist()):
            for j, x in enumerate(columns.centres().tolist()):
                top, left = y + offset[n, 1] - stride / 2 + 40, x + offset[n, 0] - stride / 2 + 40
                assert top == int(top) and left == int(left)
                naive = padded[int(top) : int(top) + stride, int(left) : int(left) + stride].mean()
                assert found[n, i, j] == pytest.approx(float(naive), abs=1e-5)
