"""Where a patch stands, as a vector: fixed waves for any grid, and learned tables brought to another grid.

All waves use the frequencies 10000^(-k/K), k = 0 ... K - 1, and put the K sines before the K cosines. Everything is
computed in float32, whatever the model's precision and inside autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Share of the width for columns, for rows and for frames, in sixteenths.
SPACE_SIXTEENTHS, TIME_SIXTEENTHS = 6, 4


def waves(positions: Tensor, width: int) -> Tensor:
    """(..., M) positions -> (..., M, width) sines, then cosines"""
    count = width // 2
    exponents = torch.arange(count, dtype=torch.float32, device=positions.device) / count
    # Not a matrix product: autocast would round its factors.
    angles = positions.float()[..., None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def plane_positions(rows: int, columns: int, width: int, scale: Tensor) -> Tensor:
    """(S,) scale -> (S, rows * columns, width): row by row; the first half of the channels encodes the column.

    Source: masked autoencoders (arXiv 2111.06377); with a scale, the ground sampling distance, Scale-MAE
    (arXiv 2212.14532, equation 2, with the reference G = 1).
    """
    half = width // 2
    across = waves(scale[:, None] * torch.arange(columns, device=scale.device), half)
    down = waves(scale[:, None] * torch.arange(rows, device=scale.device), half)
    shape = (scale.shape[0], rows, columns, half)
    return torch.cat([across[:, None].expand(shape), down[:, :, None].expand(shape)], dim=-1).flatten(1, 2)


def volume_positions(frames: int, rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """-> (1, frames * rows * columns, width): frame by frame, row by row; channels for column, row, frame.

    Source: Prithvi (arXiv 2310.18660): 6, 6 and 4 sixteenths of the width.
    """
    space, time = width // 16 * SPACE_SIXTEENTHS, width // 16 * TIME_SIXTEENTHS
    shape = (frames, rows, columns)
    parts = [
        waves(torch.arange(columns, device=device), space)[None, None].expand(*shape, space),
        waves(torch.arange(rows, device=device), space)[None, :, None].expand(*shape, space),
        waves(torch.arange(frames, device=device), time)[:, None, None].expand(*shape, time),
    ]
    return torch.cat(parts, dim=-1).flatten(0, 2)[None]


def resized_table(table: Tensor, grid: tuple[int, int], rows: int, columns: int) -> Tensor:
    """(1, prod(grid), D) learned positions -> (1, rows * columns, D), bicubic; unchanged for the same grid.

    Source: DINO (arXiv 2104.14294), whose scale factors are a tenth of a patch larger than the exact ones.
    """
    if grid == (rows, columns):
        return table
    factors = ((rows + 0.1) / grid[0], (columns + 0.1) / grid[1])
    maps = table.float().unflatten(1, grid).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, scale_factor=factors, mode="bicubic")
    return resized.flatten(2).transpose(1, 2)
