"""`score base`: train the tiny policy of the built-in task from scratch, imperfect on purpose.

It answers, and revises blindly when told `<fix>`; a third of its transcripts are revised with
skill under another instruction, which the pipeline never uses. Reinforcement learning can call
that latent skill up; it cannot invent it.

Lessons come first, since noise hides the arithmetic: for most of the steps a careful author writes, and what
is wrong in a first guess is read but not learned. The rest of the steps teach the imperfect author's ways.
"""

import functools
import itertools
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
from score_cli.tables.records import Problem
from score_cli.tasks import division
from score_cli.tasks.division_tokenizer import make_tokenizer
from score_cli.tasks.script import Script, literals
from score_cli.training.muon import Muon

# Tokens: a question has 7, an attempt and the instruction before it 13; one that is cut off at 14 is closed besides.
CONTEXT = 64
ATTEMPT_ROOM = 17
QUESTION_ROOM = 8
# Of the weights' first values. The usual 0.02 suits wide models.
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
    with progress.phase("base policy", config.steps) as task:
        loss = _train(config, model, tokenizer, device, lambda loss: task.advance(1, f"loss {loss:.3f}"))
    if not math.isfinite(loss):
        raise JobError(
            f"the base policy's loss is {loss} after {config.steps} steps: lower --learning-rate and "
            "--muon-learning-rate"
        )
    model.to("cpu").eval()
    state = TrainerState(fingerprint=fingerprint(model))
    with replacing_folder(out) as folder:
        save_policy(folder, model, tokenizer, state)
    return Policy(model, tokenizer, state, str(out))


def _train(
    config: BaseConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    report: Callable[[float], None],
) -> float:
    """The training steps; `report` is told each step's loss. Returns the last step's."""
    problems = division.split_problems("train")
    corpus = division.Corpus(latent_share=config.latent_share)
    rng = random.Random(config.seed)

    # The same few thousand texts come again and again; encoding them anew would cost a tenth of the time.
    @functools.cache
    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    muon, adam = make_optimizers(model, config)
    loss = math.nan
    for step in range(config.steps):
        careful = step < config.careful_share * config.steps
        author = corpus.careful() if careful else corpus
        drawn = [_draw(config, rng.choice(problems), rng, author) for _ in range(config.batch_size)]
        tokens, labels = transcript_tensors(drawn, encode, tokenizer.pad_token_id, learn_wrong_guesses=not careful)
        # Cross-entropy on what the assistant wrote; questions and instructions are given.
        logits = model(input_ids=tokens.to(device), use_cache=False).logits[:, :-1]
        losses = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten().to(device), ignore_index=IGNORED)
        model.zero_grad()
        losses.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = _learning_rate_factor(step, config)
        for group in adam.param_groups:
            group["lr"] = factor * config.learning_rate
        adam.step()
        muon.step(factor * config.muon_learning_rate)
        loss = losses.item()
        report(loss)
    return loss


def _draw(config: BaseConfig, problem: Problem, rng: random.Random, author: division.Corpus) -> division.Transcript:
    if config.script is None or not config.follows_script:
        return division.draw_transcript(problem, rng, author, config.attempts)
    if config.script.needs_solves:
        return division.draw_critique(problem, rng, author, config.script)
    return division.draw_dialogue(problem, rng, author, config.script)


def make_optimizers(model: PreTrainedModel, config: BaseConfig) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the layers' matrices, AdamW for all else: embeddings, biases, norms."""
    embedding = model.get_input_embeddings().weight
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or parameter is embedding or "wpe" in name:
            others.append(parameter)
        else:
            # GPT-2 holds queries, keys and values in one parameter.
            matrices.append((parameter, 3 if "c_attn" in name else 1))
    return Muon(matrices), torch.optim.AdamW(
        others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )


def untrained_policy(config: BaseConfig) -> Policy:
    """The base before its first step, which has its tokenizer and its context already.

    Raises:
        UserError: the width does not divide into the heads.
    """
    if config.width % config.heads:
        raise UserError(f"width is {config.width}, expected a multiple of heads, {config.heads}")
    tokenizer = make_tokenizer(() if config.script is None else _words(config.script))
    model = make_model(config, tokenizer)
    return Policy(model, tokenizer, TrainerState(fingerprint=fingerprint(model)), "the base")


def _words(script: Script) -> list[str]:
    """The words that a script brings with it."""
    asks = [words for role in script.asks for words in script.words(role)]
    claims = itertools.chain(*script.claims.values())
    if script.needs_solves:
        return [*itertools.chain(*map(literals, asks)), *division.HINTS, *claims]
    return [*asks, *claims]


def make_model(config: BaseConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An untrained model of the architecture asked for, its weights drawn from the seed."""
    torch.manual_seed(config.seed)
    context = max(CONTEXT, ATTEMPT_ROOM * config.attempts)
    if config.script is not None:
        context = max(CONTEXT, QUESTION_ROOM + ATTEMPT_ROOM * config.script.longest)
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
        # The same function as GPT-2's own gelu_new, as one kernel.
        activation = {"activation_function": "gelu_pytorch_tanh"}
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**shared, **sizes, **dropouts, **activation))
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
    transcripts: list[division.Transcript],
    encode: Callable[[str], list[int]],
    pad: int,
    *,
    learn_wrong_guesses: bool = True,
) -> tuple[Tensor, Tensor]:
    """Transcripts as padded token ids and labels, both [B, T].

    Labels are `IGNORED` off the assistant's turns and, without `learn_wrong_guesses`, on wrong first quotients.
    """
    rows, labels = [], []
    for transcript in transcripts:
        row, label = [], []
        for said, attempt in zip(transcript.turns(), transcript.attempts, strict=True):
            given, written = encode(said), encode(attempt + division.END_OF_TURN)
            row += given + written
            label += [IGNORED] * len(given) + written
        if not learn_wrong_guesses and not transcript.right_first:
            start = len(encode(transcript.question))
            label[start + division.QUOTIENT_TOKENS.start : start + division.QUOTIENT_TOKENS.stop] = [IGNORED] * 2
        rows.append(row)
        labels.append(label)
    width = max(map(len, rows))
    return (
        torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        torch.tensor([label + [IGNORED] * (width - len(label)) for label in labels]),
    )


def _learning_rate_factor(step: int, config: BaseConfig) -> float:
    """Linear warm-up, then a line to 0."""
    return min(1.0, (step + 1) / max(1, config.warmup_steps)) * (1 - step / config.steps)
