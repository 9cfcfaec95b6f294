"""A bare loop of PyTorch with PEFT's LoRA: ROOT ENCODER EPOCHS FOLDER."""

import sys

import torch

from tests.benchmarks.peers.parts import Burnt, adapted

root, encoder, epochs, folder = sys.argv[1:]
model = adapted(encoder).train()
loader = torch.utils.data.DataLoader(Burnt(root), batch_size=8, shuffle=True)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.05)
for _ in range(int(epochs)):
    for batch in loader:
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
model.save_pretrained(folder)
