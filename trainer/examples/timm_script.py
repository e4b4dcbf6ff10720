"""Distil with timm.

python -m logitstore.trainer.examples.timm_script STORE SNAPSHOT DATA VAL resnet18

The shape is that of timm's own train.py.  There (with --no-prefetcher) three things change:
``loader_train``, the head of the loop in ``train_one_epoch``, and ``result = task(input, target)``.
"""

import sys

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy
from torch.utils.data import DataLoader

from logitstore import LogitDataset, losses, open_store, with_logits
from logitstore.precompute.networks.pixels import to_input

EPOCHS, BATCH, LR, TEMPERATURE = 10, 64, 0.05, 4


def train_one_epoch(epoch, model, loader, optimizer):
    losses_m = AverageMeter()
    model.train()
    for input, target, _, _, teacher in loader:
        output = model(to_input(input, None))
        soft = losses.kd(output, teacher, temperature=TEMPERATURE)
        loss = (0.1 * losses.cross_entropy(output, target) + 0.9 * soft).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses_m.update(loss.item(), len(target))
    print(f"epoch {epoch + 1}: loss {losses_m.avg:.4f}", flush=True)


@torch.inference_mode()
def validate(model, loader):
    top1_m = AverageMeter()
    model.eval()
    for input, target in loader:
        (top1,) = accuracy(model(to_input(input, None)), target)
        top1_m.update(top1.item(), len(target))
    print(f"accuracy {top1_m.avg / 100:.4f}")


if __name__ == "__main__":
    store, name, data, val, arch = sys.argv[1:]
    snapshot = open_store(store).snapshots[name]
    train = LogitDataset(data, snapshot)
    loader_train = with_logits(DataLoader(train, BATCH, shuffle=True, num_workers=2), snapshot)
    model = timm.create_model(arch, num_classes=train.classes, in_chans=len(train[0].image))
    optimizer = create_optimizer_v2(model, opt="sgd", lr=LR, momentum=0.9, weight_decay=5e-4)
    lr_scheduler, num_epochs = create_scheduler_v2(optimizer, num_epochs=EPOCHS)
    for epoch in range(num_epochs):
        train_one_epoch(epoch, model, loader_train, optimizer)
        lr_scheduler.step(epoch + 1)
    validate(model, DataLoader(train.validation(val), 256))
