"""Distil with transformers.

python -m logitstore.trainer.examples.huggingface STORE SNAPSHOT DATA VAL

Save checkpoints at the ends of epochs: to go on inside one, the Trainer makes a loader of its own,
without logits.
"""

import sys

from torch.utils.data import default_collate
from transformers import Trainer, TrainingArguments

from logitstore import LogitDataset, losses, open_store, with_logits
from logitstore.precompute.networks.factory import build_model
from logitstore.precompute.networks.pixels import to_input

EPOCHS, BATCH, LR, TEMPERATURE = 10, 64, 3e-3, 4
OPTIONS = {"logging_strategy": "epoch", "save_strategy": "epoch", "report_to": "none"}
OPTIONS |= {"remove_unused_columns": False, "label_names": ["label"], "dataloader_num_workers": 2}


class Distiller(Trainer):
    def get_train_dataloader(self):
        return with_logits(super().get_train_dataloader(), self.snapshot)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(to_input(inputs["image"], None))
        loss = losses.cross_entropy(logits, inputs["label"])
        if model.training:
            soft = losses.kd(logits, inputs["teacher"], temperature=TEMPERATURE)
            loss = 0.1 * loss + 0.9 * soft
        return (loss.mean(), {"logits": logits}) if return_outputs else loss.mean()


def collate(items):
    return default_collate(items)._asdict()


def accuracy(out):
    return {"accuracy": (out.predictions.argmax(1) == out.label_ids).mean()}


if __name__ == "__main__":
    store, name, data, val = sys.argv[1:]
    snapshot = open_store(store).snapshots[name]
    train = LogitDataset(data, snapshot)
    student = build_model("cnn5", classes=train.classes, shape=train[0].image.shape)
    settings = TrainingArguments(
        "student",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=LR,
        **OPTIONS,
    )
    trainer = Distiller(student, settings, collate, train, train.validation(val))
    trainer.compute_metrics, trainer.snapshot = accuracy, snapshot
    trainer.train()
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.4f}")
