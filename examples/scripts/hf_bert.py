"""A small BERT with ReLU, from its config, trained to fill in masked words by Hugging Face's Trainer. Knows no relume.

relume run examples/scripts/hf_bert.py [FILE]
"""

import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments, set_seed
from words import MASK, blocks


def collate(rows):
    ids = torch.tensor(rows)
    masked = torch.rand(ids.shape) < 0.15
    return {"input_ids": ids.masked_fill(masked, MASK), "labels": ids.masked_fill(~masked, -100)}


def main() -> None:
    set_seed(0)
    torch.set_num_threads(1)
    config = BertConfig(
        vocab_size=500, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=32, hidden_act="relu",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=BertForMaskedLM(config),
            args=TrainingArguments(
                folder, max_steps=60, per_device_train_batch_size=16, learning_rate=2e-3, report_to="none",
                save_strategy="no", eval_strategy="steps", eval_steps=30, logging_steps=30, disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=blocks(500, 32, 600)[64:],
            eval_dataset=blocks(500, 32, 64),
            data_collator=collate,
        )  # fmt: skip
        outcome = trainer.train()
    print(f"{outcome.global_step} steps, loss {outcome.training_loss:.6f}")
    if len(sys.argv) > 1:
        torch.save(trainer.model.state_dict(), sys.argv[1])


if __name__ == "__main__":
    main()
