"""Heat maps whose cells know their pixels: soft-argmax, spread, expected values and Gaussian maps.

A heat map comes out of convolutions, and the centre of one of its cells is the centre of that cell's receptive field in
the input image, which the layers' strides and paddings fix (Dumoulin and Visin, "A guide to convolution arithmetic for
deep learning", 2016). :class:`CellGrid` holds it, once for rows and once for columns, so that everything here speaks
pixels of the encoder's input and a change of crop or of network needs no further correction.

Conventions (axes, pixels, shapes) are those of :mod:`kp3d_rl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CellGrid:
    """Where the cells along one side of a heat map lie in the network's input.

    :param cells: number of cells.
    :param stride: distance of neighbouring centres, input pixels.
    :param offset: centre of cell 0, input pixels (half-integers are pixel centres).
    """

    cells: int
    stride: float
    offset: float

    @classmethod
    def from_layers(cls, layers: Sequence[tuple[int, int, int]], input_size: int) -> CellGrid:
        """The grid after a stack of convolutions.

        :param layers: (kernel, stride, padding) of every layer, first to last.
        :param input_size: pixels along this side of the input.
        :raises ValueError: where the input is too small for the layers.
        """
        cells, stride, offset = input_size, 1, 0.5
        for index, (kernel, step, padding) in enumerate(layers):
            offset += ((kernel - 1) / 2 - padding) * stride
            stride *= step
            if cells + 2 * padding < kernel:
                raise ValueError(f"layer {index} of {list(layers)} has no room: {cells} cells for a kernel of {kernel}")
            cells = (cells + 2 * padding - kernel) // step + 1
        return cls(cells, float(stride), offset)

    def centres(self, like: Tensor | None = None) -> Tensor:
        """(cells,) input pixels, with the dtype and device of ``like``."""
        like = torch.empty(0) if like is None else like
        return torch.arange(self.cells, dtype=like.dtype, device=like.device) * self.stride + self.offset

    def reaches(self, pixels: Tensor) -> Tensor:
        """Whether places along this side, in input pixels, lie between the outermost cells, as means of cells do."""
        return (pixels > self.offset) & (pixels < self.offset + (self.cells - 1) * self.stride)


def softmax2d(logits: Tensor) -> Tensor:
    """Softmax over the last two dimensions, (..., h, w) -> (..., h, w)."""
    return logits.flatten(-2).softmax(-1).view_as(logits)


def standardise(logits: Tensor, epsilon: float = 1e-2) -> Tensor:
    """Logits with mean 0 and standard deviation 1 over each map, (..., h, w) -> (..., h, w).

    A response that is rare in the image stands out by many deviations, one that is everywhere by few, so that the
    softmax of standardised logits is sharp on small things from the first step on.

    :param epsilon: least deviation that is divided by, so that a flat map stays flat and its gradient finite.
    """
    flat = logits.flatten(-2)
    return torch.nn.functional.layer_norm(flat, flat.shape[-1:], eps=epsilon**2).view_as(logits)


def soft_argmax(heat: Tensor, grid_rows: CellGrid, grid_cols: CellGrid) -> Tensor:
    """The mean position of a heat map.

    :param heat: (..., h, w), summing to 1.
    :return: uv (..., 2), pixels of the network's input.
    """
    columns, rows = heat.sum(-2), heat.sum(-1)
    return torch.stack([columns @ grid_cols.centres(heat), rows @ grid_rows.centres(heat)], -1)


def expected_value(heat: Tensor, values: Tensor) -> Tensor:
    """The mean of a map under a heat map, (..., h, w) each -> (...)."""
    return (heat * values).sum((-2, -1))


def spread(heat: Tensor, grid_rows: CellGrid, grid_cols: CellGrid) -> Tensor:
    """The standard deviation of a heat map.

    :param heat: (..., h, w), summing to 1.
    :return: (..., 2), pixels along u and v. A one-hot map has 1e-6 instead of 0, so that the gradient stays finite.
    """
    return torch.stack([_deviation(heat.sum(-2), grid_cols), _deviation(heat.sum(-1), grid_rows)], -1)


def gaussian_maps(uv: Tensor, sigma: Tensor, height: Tensor, grid_rows: CellGrid, grid_cols: CellGrid) -> Tensor:
    """Gaussian bumps on the grid of a heat map, ``height * exp(-|cell - uv|^2 / (2 sigma^2))``.

    :param uv: (..., 2) pixels, finite; points outside of the image are fine.
    :param sigma: (...) standard deviation, pixels, positive. A size in space goes with 1 / depth.
    :param height: (...) value at the peak.
    :return: (..., h, w).
    """
    scale = (-0.5 / sigma.square()).unsqueeze(-1)
    columns = torch.exp(scale * (grid_cols.centres(uv) - uv[..., :1]).square())
    rows = torch.exp(scale * (grid_rows.centres(uv) - uv[..., 1:]).square())
    return (height.unsqueeze(-1) * rows).unsqueeze(-1) * columns.unsqueeze(-2)


def pool_to_cells(values: Tensor, grid_rows: CellGrid, grid_cols: CellGrid, offset: Tensor) -> Tensor:
    """What lies in each cell: the mean of an image over a square of one stride around the cell's centre.

    :param values: (..., H, W) float image; 0 is assumed outside.
    :param offset: (..., 2) pixels, (left, top) in that image of what the network saw.
    :return: (..., h, w).
    """
    height, width = values.shape[-2:]
    stride = int(grid_rows.stride)
    first = [grid.offset - 0.5 * stride for grid in (grid_rows, grid_cols)]
    if not offset.any() and all(edge.is_integer() and edge >= 0 for edge in first):  # the squares tile the image
        top, left = (int(edge) for edge in first)
        tiled = values[..., top : top + stride * grid_rows.cells, left : left + stride * grid_cols.cells]
        if tiled.shape[-2:] == (stride * grid_rows.cells, stride * grid_cols.cells):
            pooled = torch.nn.functional.avg_pool2d(tiled.reshape(-1, 1, *tiled.shape[-2:]), stride)
            return pooled.view(*tiled.shape[:-2], grid_rows.cells, grid_cols.cells)
    # Entry i of the pooled image is the mean around pixel coordinate i + 0.5 stride - pad, so a cell's centre is at
    # index centre - 0.5 stride + pad, between two entries in general.
    pad = stride - 1
    padded = torch.nn.functional.pad(values.reshape(-1, 1, height, width), (pad, pad, pad, pad))
    pooled = torch.nn.functional.avg_pool2d(padded, stride, 1)
    rows = grid_rows.centres(values) + offset[..., 1:] - 0.5 * stride + pad
    columns = grid_cols.centres(values) + offset[..., :1] - 0.5 * stride + pad
    y = 2.0 * rows / (pooled.shape[-2] - 1) - 1.0
    x = 2.0 * columns / (pooled.shape[-1] - 1) - 1.0
    y, x = y.unsqueeze(-1).expand(*y.shape, x.shape[-1]), x.unsqueeze(-2).expand(*y.shape, x.shape[-1])
    places = torch.stack([x, y], -1).reshape(len(pooled), *x.shape[-2:], 2)
    found = torch.nn.functional.grid_sample(pooled, places, align_corners=True)
    return found.view(x.shape)


def entropy(heat: Tensor) -> Tensor:
    """Shannon entropy of a heat map in nats: 0 for one cell, log(h * w) for a flat map. (..., h, w) -> (...)."""
    return -(heat * heat.clamp(min=torch.finfo(heat.dtype).tiny).log()).sum((-2, -1))


def _deviation(marginal: Tensor, grid: CellGrid) -> Tensor:
    """(..., cells) probabilities -> (...) standard deviation, pixels."""
    centres = grid.centres(marginal)
    offset = centres - (marginal @ centres).unsqueeze(-1)
    return (marginal * offset.square()).sum(-1).clamp(min=1e-12).sqrt()
