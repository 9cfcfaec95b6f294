"""Burnt areas as a user reads them, random windows, flipped; the encoder with all bands, LoRA and a linear head."""

import random
from pathlib import Path

import numpy as np
import rasterio
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import ViTModel

SIDE, PATCH, SCALE, IGNORED = 64, 8, 5e-5, 255
MEAN = torch.tensor([0.0400, 0.0629, 0.0579, 0.2, 0.1])[:, None, None]
STD = torch.tensor([0.0406, 0.0487, 0.0599, 0.1, 0.1])[:, None, None]


class Burnt(torch.utils.data.Dataset):
    def __init__(self, root):
        self.root, self.names = Path(root), (Path(root) / "train.txt").read_text().split()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        with rasterio.open(self.root / "images" / f"{name}.tif") as image:
            stored = torch.from_numpy(image.read().astype(np.float32))
        mask = torch.from_numpy(np.array(Image.open(self.root / "masks" / f"{name}.png"))).long()
        top = random.randint(0, mask.shape[0] - SIDE)
        left = random.randint(0, mask.shape[1] - SIDE)
        stored, mask = stored[:, top : top + SIDE, left : left + SIDE], mask[top : top + SIDE, left : left + SIDE]
        mask = mask.masked_fill((stored == 0).all(dim=0), IGNORED)
        pixels = torch.where(stored == 0, 0.0, (stored * SCALE - MEAN) / STD)
        for axis in (-1, -2):
            if random.random() < 0.3:
                pixels, mask = pixels.flip(axis), mask.flip(axis)
        return {"pixel_values": pixels, "labels": mask}


class Segmenter(nn.Module):
    def __init__(self, encoder, bands):
        super().__init__()
        self.encoder = ViTModel.from_pretrained(encoder, add_pooling_layer=False)
        patches = self.encoder.embeddings.patch_embeddings
        wider = nn.Conv2d(bands, patches.projection.out_channels, PATCH, PATCH)
        with torch.no_grad():
            wider.weight[:, :3] = patches.projection.weight.flip(1)
            wider.bias.copy_(patches.projection.bias)
        patches.projection, patches.num_channels = wider, bands
        self.head = nn.Conv2d(self.encoder.config.hidden_size, 2, 1)

    def forward(self, pixel_values, labels):
        tokens = self.encoder(pixel_values).last_hidden_state[:, 1:]
        grid = tokens.transpose(1, 2).unflatten(2, (pixel_values.shape[2] // PATCH, -1))
        logits = nn.functional.interpolate(self.head(grid), size=labels.shape[1:], mode="bilinear")
        return {"loss": nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED), "logits": logits}


def adapted(encoder):
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=layers, modules_to_save=["projection", "head"])
    return get_peft_model(Segmenter(encoder, bands=5), lora)
