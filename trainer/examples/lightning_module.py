"""Distil with Lightning.

python -m logitstore.trainer.examples.lightning_module STORE SNAPSHOT DATA VAL

On several devices, give the DataLoader a DistributedSampler: Lightning adds one only to a bare one.
"""

import sys

import lightning
import torch
from torch.utils.data import DataLoader

from logitstore import LogitDataset, losses, open_store, with_logits
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.pixels import to_input

EPOCHS, BATCH, LR, TEMPERATURE = 10, 64, 0.05, 4


class Student(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def on_train_epoch_start(self):  # a resumed run goes on with its epoch's view
        self.trainer.train_dataloader.set_epoch(self.current_epoch)

    def training_step(self, batch, batch_idx):
        logits = self.model(to_input(batch.image, None))
        soft = losses.kd(logits, batch.teacher, temperature=TEMPERATURE)
        loss = (0.1 * losses.cross_entropy(logits, batch.label) + 0.9 * soft).mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        right = self.model(to_input(batch.image, None)).argmax(1) == batch.label
        self.log("accuracy", right.float().mean())

    def on_train_epoch_end(self):
        metrics = self.trainer.callback_metrics
        print(f"loss {metrics['loss']:.4f} accuracy {metrics['accuracy']:.4f}", flush=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


if __name__ == "__main__":
    store, name, data, val = sys.argv[1:]
    snapshot = open_store(store).snapshots[name]
    train = LogitDataset(data, snapshot)
    loader = with_logits(DataLoader(train, BATCH, shuffle=True, num_workers=2), snapshot)
    student = Student(build_model("cnn5", classes=train.classes, shape=train[0].image.shape))
    trainer = lightning.Trainer(max_epochs=EPOCHS, logger=False, enable_checkpointing=False)
    trainer.fit(student, loader, DataLoader(train.validation(val), 256))
