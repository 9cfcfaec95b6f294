"""From pixels to tokens: patches, the class token, and positions of every kind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deflect_hf.errors import BandError, ConfigError, DataError
from deflect_hf.models.configuration import as_pair
from deflect_hf.models.geovit.configuration import GeoViTConfig

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


class GeoViTPatchEmbeddings(nn.Module):
    """One linear map per patch, of the bands of one image or of one frame of a series."""

    def __init__(self, config: GeoViTConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = as_pair(config.patch_size)
        self.is_temporal = config.is_temporal
        sizes, patch = (config.num_channels, config.hidden_size), self.patch_size
        self.projection: nn.Conv2d | nn.Conv3d
        if self.is_temporal:
            self.projection = nn.Conv3d(*sizes, kernel_size=(1, *patch), stride=(1, *patch))
        else:
            self.projection = nn.Conv2d(*sizes, kernel_size=patch, stride=patch)

    def grid(self, pixel_values: Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of patches (DataError)."""
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 and not (len(shape) == 5 and self.is_temporal):
            expected = "(batch, bands, height, width)"
            expected += " or (batch, bands, frames, height, width)" if self.is_temporal else ""
            raise DataError(f"pixel_values must be {expected}, not of shape {shape}.")
        (height, width), (rows, columns) = shape[-2:], self.patch_size
        if height % rows or width % columns or 0 in shape:
            raise DataError(
                f"pixel_values of shape {shape}: height and width must be multiples of the patch size {rows} x "
                f"{columns}, and nothing empty. Crop or resize the images."
            )
        return shape[2] if len(shape) == 5 else 1, height // rows, width // columns

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C, T, H, W) -> (B, T * h * w, D)

        Raises:
            BandError: the number of channels is not that of the encoder.
        """
        if pixel_values.shape[1] != self.num_channels:
            raise BandError(
                f"pixel_values has {pixel_values.shape[1]} channels, but the encoder takes {self.num_channels}: select "
                "its base bands by name, with the task models or with deflect_hf.select_bands."
            )
        if self.is_temporal and pixel_values.ndim == 4:
            pixel_values = pixel_values.unsqueeze(2)
        return self.projection(pixel_values.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)


class GeoViTEmbeddings(nn.Module):
    """The class token and the patches, each with its position."""

    def __init__(self, config: GeoViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embeddings = GeoViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings: nn.Parameter | None = None
        if config.position_embedding == "learned":
            _, rows, columns = config.grid_size
            self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + rows * columns, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, gsd: float | Tensor | None = None) -> Tensor:
        """(B, C, H, W) or (B, C, T, H, W) normalised -> (B, 1 + T * h * w, D)

        Args:
            gsd: of ``sincos_gsd`` positions: a number or a (B,) tensor; default ``config.gsd``.
        """
        grid = self.patch_embeddings.grid(pixel_values)
        patches = self.patch_embeddings(pixel_values)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        positions = self.positions(grid, self._scale(gsd, patches))
        return self.dropout(tokens + positions.to(tokens.dtype))

    def positions(self, grid: tuple[int, int, int], scale: Tensor) -> Tensor:
        """(1,) or (B,) scale -> (1 or B, 1 + prod(grid), D): that of the class token first, zero unless learned"""
        frames, rows, columns = grid
        width = self.config.hidden_size
        if self.position_embeddings is not None:
            table = self.position_embeddings
            patches = resized_table(table[:, 1:], self.config.grid_size[1:], rows, columns)
            return torch.cat([table[:, :1].to(patches.dtype), patches], dim=1)
        if self.config.is_temporal:
            fixed = volume_positions(frames, rows, columns, width, scale.device)
        else:
            fixed = plane_positions(rows, columns, width, scale)
        return F.pad(fixed, (0, 0, 1, 0))

    def _scale(self, gsd: float | Tensor | None, patches: Tensor) -> Tensor:
        if gsd is None:
            gsd = float(self.config.gsd)
        elif self.config.position_embedding != "sincos_gsd":
            raise ConfigError(
                f"gsd was given, but {self.config.position_embedding!r} positions do not depend on it: leave it out."
            )
        if not isinstance(gsd, Tensor):
            if not gsd > 0:
                raise ConfigError(f"gsd={gsd} must be positive.")
            return torch.full((1,), gsd, dtype=torch.float32, device=patches.device)
        if gsd.numel() not in (1, patches.shape[0]) or gsd.ndim > 1:
            raise DataError(f"gsd must be one number or one per image ({patches.shape[0]}), not {tuple(gsd.shape)}.")
        return gsd.reshape(-1).to(device=patches.device, dtype=torch.float32)
