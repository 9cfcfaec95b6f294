"""timm's VisionTransformer as timm 1.0 writes it, down to the names: timm itself wants torchvision."""

import torch
import torch.nn.functional as F
from torch import nn


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int, img_size: int | None, flatten: bool) -> None:
        super().__init__()
        self.img_size = img_size and (img_size, img_size)
        self.flatten = flatten
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.Identity()

    def forward(self, x):
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2) if self.flatten else x.permute(0, 2, 3, 1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity() for _ in "qk")
        self.attn_drop = nn.Dropout(0.0)
        self.norm = nn.Identity()
        self.gate = None
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x, attn_mask=None, is_causal=False):
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        else:
            q = q * self.scale
            attn = q @ k.transpose(-2, -1)
            attn = self.attn_drop(attn.softmax(dim=-1))
            x = attn @ v
        x = x.transpose(1, 2).reshape(B, N, self.attn_dim)
        return self.proj_drop(self.proj(self.norm(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, qk_norm)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        self.drop_path1 = self.drop_path2 = nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, attn_mask=None, is_causal=False):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 8,
        embed_dim: int = 32,
        depth: int = 3,
        num_heads: int = 4,
        num_classes: int = 5,
        qk_norm: bool = False,
        pre_norm: bool = False,
        reg_tokens: int = 0,
        dynamic_img_size: bool = False,
        init_values: float = 0.5,  # of LayerScale
    ) -> None:
        super().__init__()
        self.dynamic_img_size = dynamic_img_size
        self.patch_embed = PatchEmbed(
            embed_dim, patch_size, None if dynamic_img_size else img_size, flatten=not dynamic_img_size
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + reg_tokens + (img_size // patch_size) ** 2, embed_dim) * 0.02)
        self.patch_drop = nn.Identity()
        self.norm_pre = nn.LayerNorm(embed_dim) if pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, qk_norm) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def _pos_embed(self, x):
        to_cat = [self.cls_token.expand(x.shape[0], -1, -1)]
        if self.reg_token is not None:
            to_cat.append(self.reg_token.expand(x.shape[0], -1, -1))
        if self.dynamic_img_size:
            B, _, _, C = x.shape
            x = x.view(B, -1, C)
        return torch.cat([*to_cat, x], dim=1) + self.pos_embed

    def forward_features(self, x, attn_mask=None):
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        for block in self.blocks if attn_mask is not None else ():
            x = block(x, attn_mask=attn_mask)
        return self.norm(self.blocks(x) if attn_mask is None else x)

    def forward(self, x, attn_mask=None):
        return self.head(self.forward_features(x, attn_mask)[:, 0])
