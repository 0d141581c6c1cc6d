"""In the Trainer of Hugging Face.

A small BERT, with new weights, learns to find rare messages. Each word speaks for or against the rare
class, some more than others; what the words sum up to decides, with some noise. It is trained twice, with
the same first weights and steps: by `Trainer`, and by `AdaptiveTrainer`, which takes a sampler and needs no
other change.

What to see: average precision on test messages, and the mean probability beside the share of positives.
After so few steps plain training has only begun; with more of them it comes closer. Nothing is downloaded:
the model is built from its configuration, and tokens are numbers.

    pip install 'balancer[transformers]' scikit-learn
    python examples/hugging_face_trainer.py
"""

import tempfile

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments, set_seed

from balancer import AdaptiveSampler
from balancer.integrations.hugging_face import AdaptiveTrainer

EPOCHS, LENGTH, VOCABULARY = 4, 12, 40
rng = np.random.default_rng(0)
tokens = rng.integers(2, VOCABULARY, (9000, LENGTH))
tokens[:, 0] = 1  # where the class is read
speaks_for = rng.normal(size=VOCABULARY)
total = speaks_for[tokens].sum(1) + rng.normal(size=9000)
label = (total > np.quantile(total, 0.96)).astype(int)
records = [{"input_ids": torch.tensor(row), "labels": int(one)} for row, one in zip(tokens, label, strict=True)]
train, valid, test = records[:3200], records[3200:4800], records[4800:]
truth = label[4800:]
print(f"share of positives: {truth.mean():.4f}")

config = BertConfig(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=LENGTH
)


def fit(trainer_class, folder, **more):
    """Train; the logits (n, 2) of the test messages."""
    set_seed(0)
    arguments = TrainingArguments(
        folder,
        num_train_epochs=EPOCHS,
        learning_rate=4e-3,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=800,
        eval_strategy="epoch",
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        log_level="error",
    )
    trainer = trainer_class(BertForSequenceClassification(config), arguments, train_dataset=train, eval_dataset=valid, **more)
    trainer.remove_callback(PrinterCallback)  # no line for each epoch
    trainer.train()
    return trainer.predict(test).predictions


def show(name, probability):
    """Print the figures of one way."""
    print(f"{name:16} average precision {average_precision_score(truth, probability):.3f}   mean probability {probability.mean():.4f}")


with tempfile.TemporaryDirectory() as folder:
    logits = torch.tensor(fit(Trainer, folder))
    show("Trainer", logits.softmax(1)[:, 1].numpy())
    sampler = AdaptiveSampler([record["labels"] for record in train], epochs=EPOCHS, seed=0, compensated=True)
    probability = sampler.probabilities(fit(AdaptiveTrainer, folder, sampler=sampler))[:, 1]
    show("AdaptiveTrainer", probability)
print(f"best epoch {sampler.best_epoch}, share of positives in the draws {sampler.weights.share[1]:.3f}")
