"""The Trainer of transformers with PEFT's LoRA: ROOT ENCODER EPOCHS FOLDER."""

import sys

from transformers import Trainer, TrainingArguments

from tests.benchmarks.peers.parts import Burnt, adapted

root, encoder, epochs, folder = sys.argv[1:]
settings = TrainingArguments(
    folder,
    per_device_train_batch_size=8,
    num_train_epochs=int(epochs),
    learning_rate=1e-4,
    weight_decay=0.05,
    save_strategy="no",
    report_to=[],
    remove_unused_columns=False,
    use_cpu=True,
)
model = adapted(encoder)
Trainer(model, settings, train_dataset=Burnt(root)).train()
model.save_pretrained(folder)
