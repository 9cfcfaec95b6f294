"""TerraTorch's fit with PEFT's LoRA, in an environment of its own: ROOT ENCODER EPOCHS FOLDER."""

import sys

import albumentations as A
from albumentations.pytorch import ToTensorV2
from lightning.pytorch import Trainer
from terratorch.datamodules import GenericNonGeoSegmentationDataModule
from terratorch.tasks import SemanticSegmentationTask
from torch import nn
from transformers import ViTModel

root, encoder, epochs, folder = sys.argv[1:]
BANDS = ["B", "G", "R", "N", "S2"]
SPLITS = ("train", "val", "test")


class Backbone(nn.Module):
    patch_size = 8

    def __init__(self):
        super().__init__()
        self.encoder = ViTModel.from_pretrained(encoder, add_pooling_layer=False)
        patches = self.encoder.embeddings.patch_embeddings
        wider = nn.Conv2d(len(BANDS), patches.projection.out_channels, 8, 8)
        wider.weight.data[:, :3] = patches.projection.weight.data.flip(1)
        wider.bias.data.copy_(patches.projection.bias.data)
        patches.projection, patches.num_channels = wider, len(BANDS)
        self.out_channels = [self.encoder.config.hidden_size]

    def forward(self, pixels):
        tokens = self.encoder(pixels).last_hidden_state[:, 1:]
        return [tokens.transpose(1, 2).unflatten(2, (pixels.shape[-2] // 8, -1))]


crop = [A.RandomCrop(64, 64), A.HorizontalFlip(p=0.3), A.VerticalFlip(p=0.3), ToTensorV2()]
data = GenericNonGeoSegmentationDataModule(
    batch_size=8,
    num_workers=0,
    num_classes=2,
    **{f"{split}_data_root": f"{root}/images" for split in SPLITS},
    **{f"{split}_label_data_root": f"{root}/masks" for split in SPLITS},
    **{f"{split}_split": f"{root}/{split}.txt" for split in SPLITS},
    img_grep="*.tif",
    label_grep="*.png",
    allow_substring_split_file=False,
    dataset_bands=BANDS,
    output_bands=BANDS,
    constant_scale=5e-5,
    means=[0.0400, 0.0629, 0.0579, 0.2, 0.1],
    stds=[0.0406, 0.0487, 0.0599, 0.1, 0.1],
    no_data_replace=0,
    no_label_replace=255,
    train_transform=crop,
    check_stackability=False,
)
task = SemanticSegmentationTask(
    model_factory="EncoderDecoderFactory",
    model_args={
        "backbone": Backbone(),
        "backbone_pretrained": True,
        "decoder": "IdentityDecoder",
        "num_classes": 2,
        "peft_config": {
            "method": "LORA",
            "peft_config_kwargs": {
                "r": 16,
                "lora_alpha": 16,
                "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
                "modules_to_save": ["projection"],
            },
        },
    },
    ignore_index=255,
    lr=1e-4,
    optimizer="AdamW",
    optimizer_hparams={"weight_decay": 0.05},
    plot_on_val=False,
)
trainer = Trainer(
    accelerator="cpu", max_epochs=int(epochs), limit_val_batches=0, logger=False, default_root_dir=folder,
    enable_progress_bar=False,
)  # fmt: skip
trainer.fit(task, datamodule=data)
