"""Distil in a plain PyTorch loop.

python -m logitstore.trainer.examples.plain STORE SNAPSHOT DATA VAL
"""

import sys

import torch
from torch.utils.data import DataLoader

from logitstore import LogitDataset, losses, open_store, with_logits
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.pixels import to_input

EPOCHS, BATCH, LR, TEMPERATURE = 10, 64, 0.05, 4


def main():
    store, name, data, val = sys.argv[1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    snapshot = open_store(store).snapshots[name]
    train = LogitDataset(data, snapshot)
    loader = DataLoader(train, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    loader = with_logits(loader, snapshot, device=device)
    student = build_model("cnn5", classes=train.classes, shape=train[0].image.shape).to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)

    for epoch in range(EPOCHS):
        total = 0
        for image, label, _, _, teacher in loader:
            logits = student(to_input(image.to(device), None))  # None: pixels in [0, 1]
            hard = losses.cross_entropy(logits, label.to(device))
            soft = losses.kd(logits, teacher, temperature=TEMPERATURE)
            loss = (0.1 * hard + 0.9 * soft).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        schedule.step()
        print(f"epoch {epoch + 1}: loss {total / len(loader):.4f}", flush=True)

    student.eval()
    correct = known = 0
    for image, label in DataLoader(train.validation(val), 256):
        with torch.inference_mode():
            guess = student(to_input(image.to(device), None)).argmax(1).cpu()
        correct, known = correct + (guess == label).sum(), known + (label >= 0).sum()
    print(f"accuracy {correct / known:.4f}")


if __name__ == "__main__":
    main()
