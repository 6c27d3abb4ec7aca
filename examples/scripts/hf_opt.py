"""A small OPT (its MLPs have ReLU), from its config, trained to predict the next word by Hugging Face's Trainer, with
gradient accumulation. Knows no relume.

relume run examples/scripts/hf_opt.py [FILE]
"""

import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainingArguments, set_seed
from words import blocks


def main() -> None:
    set_seed(0)
    torch.set_num_threads(1)
    config = OPTConfig(
        vocab_size=500, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, ffn_dim=96,
        max_position_embeddings=32, word_embed_proj_dim=48,
    )  # fmt: skip
    opt = OPTForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=opt,
            args=TrainingArguments(
                folder, max_steps=40, per_device_train_batch_size=8, gradient_accumulation_steps=2, learning_rate=2e-3,
                report_to="none", save_strategy="no", logging_steps=20, disable_tqdm=True, use_cpu=True,
            ),
            train_dataset=[{"input_ids": ids, "labels": ids} for ids in blocks(500, 32, 600)],
        )  # fmt: skip
        outcome = trainer.train()
    print(f"{outcome.global_step} steps, loss {outcome.training_loss:.6f}")
    if len(sys.argv) > 1:
        torch.save(opt.state_dict(), sys.argv[1])


if __name__ == "__main__":
    main()
