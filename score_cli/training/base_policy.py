"""`score base`: train the tiny policy of the built-in task from scratch, imperfect on purpose.

It answers, and revises blindly when told `<fix>`; a third of its transcripts are revised with
skill under another instruction, which the pipeline never uses. Reinforcement learning can call
that latent skill up; it cannot invent it.
"""

import functools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from score_cli.config import BaseConfig
from score_cli.errors import JobError, UserError
from score_cli.progress import SILENT, Progress
from score_cli.tables.atomic import check_output, replacing_folder
from score_cli.tables.checkpoints import Policy, TrainerState, fingerprint, save_policy
from score_cli.tables.device import setup_device
from score_cli.tasks import division
from score_cli.tasks.division_tokenizer import make_tokenizer

# Tokens: a question has 7, an attempt and the instruction before it 13; one that is cut off at 14 is closed besides.
CONTEXT = 64
ATTEMPT_ROOM = 17
# Of the weights' first values. The usual 0.02 suits wide models: at width 96 the same loss takes three times the steps,
# and some seeds have not learned to revise by then.
INITIAL_SCALE = 0.06
IGNORED = -100


def train_base(config: BaseConfig, *, out: Path, overwrite: bool = False, progress: Progress = SILENT) -> Policy:
    """Train a base policy on transcripts of the training problems and write its checkpoint.

    Raises:
        UserError: `out` exists, or a setting does not fit.
    """
    check_output(out, overwrite=overwrite, folder=True)
    device = setup_device(config)
    start = untrained_policy(config)
    tokenizer, model = start.tokenizer, start.model.to(device)
    problems = division.split_problems("train")
    corpus = division.Corpus(latent_share=config.latent_share)
    rng = random.Random(config.seed)

    # The same few thousand texts come again and again; encoding them anew would cost a tenth of the time.
    @functools.cache
    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, config))
    with progress.phase("base policy", config.steps) as task:
        for _ in range(config.steps):
            drawn = [
                division.draw_transcript(rng.choice(problems), rng, corpus, config.attempts)
                for _ in range(config.batch_size)
            ]
            tokens, labels = transcript_tensors(drawn, encode, tokenizer.pad_token_id)
            # Cross-entropy on what the assistant wrote; questions and instructions are given.
            logits = model(input_ids=tokens.to(device)).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten().to(device), ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            task.advance(1, f"loss {loss.item():.3f}")
    if not math.isfinite(loss.item()):
        raise JobError(f"the base policy's loss is {loss.item()} after {config.steps} steps: lower --learning-rate")
    model.to("cpu").eval()
    state = TrainerState(fingerprint=fingerprint(model))
    with replacing_folder(out) as folder:
        save_policy(folder, model, tokenizer, state)
    return Policy(model, tokenizer, state, str(out))


def untrained_policy(config: BaseConfig) -> Policy:
    """The base before its first step, which has its tokenizer and its context already.

    Raises:
        UserError: the width does not divide into the heads.
    """
    if config.width % config.heads:
        raise UserError(f"width is {config.width}, expected a multiple of heads, {config.heads}")
    tokenizer = make_tokenizer()
    model = make_model(config, tokenizer)
    return Policy(model, tokenizer, TrainerState(fingerprint=fingerprint(model)), "the base")


def make_model(config: BaseConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An untrained model of the architecture asked for, its weights drawn from the seed."""
    torch.manual_seed(config.seed)
    context = max(CONTEXT, ATTEMPT_ROOM * config.attempts)
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": INITIAL_SCALE,
    }
    if config.architecture == "gpt2":
        dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_positions": context, "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads}
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**shared, **sizes, **dropouts))
    else:
        sizes = {
            "max_position_embeddings": context,
            "hidden_size": config.width,
            "intermediate_size": 3 * config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": max(1, config.heads // 2),
        }
        family: Any = (
            (LlamaForCausalLM, LlamaConfig) if config.architecture == "llama" else (Qwen2ForCausalLM, Qwen2Config)
        )
        model = family[0](family[1](**shared, **sizes, tie_word_embeddings=True))
    return model.eval()


def transcript_tensors(
    transcripts: list[division.Transcript], encode: Callable[[str], list[int]], pad: int
) -> tuple[Tensor, Tensor]:
    """Transcripts as padded token ids and labels, both [B, T]; labels are `IGNORED` off the assistant's turns."""
    rows, labels = [], []
    for transcript in transcripts:
        row, label = [], []
        for said, attempt in zip(transcript.turns(), transcript.attempts, strict=True):
            given, written = encode(said), encode(attempt + division.END_OF_TURN)
            row += given + written
            label += [IGNORED] * len(given) + written
        rows.append(row)
        labels.append(label)
    width = max(map(len, rows))
    return (
        torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        torch.tensor([label + [IGNORED] * (width - len(label)) for label in labels]),
    )


def _learning_rate_factor(step: int, config: BaseConfig) -> float:
    """Linear warm-up, then a cosine to 0."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
