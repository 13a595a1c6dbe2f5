"""The noise of log-ratios in bfloat16: with logits rounded to it, and with this package's float32 logits.

    python benchmarks/bfloat16.py [--model CKPT] [--steps 4] [--traces 8] [--tokens 96]

A policy is a model after some Adam steps of 5e-6 on tokens that it sampled, with advantages of plus and minus one; the
model itself is the reference. The truth is the log-ratio of each token in float32. `rounded` computes under autocast to
bfloat16 as transformers does by itself, logits too; `float32 logits` is what trainer, reference and engines of this
package do on a GPU (here on the CPU, which emulates it). Without --model a random Llama of 21 million parameters, its
head scaled up so that its distributions are as sharp as a trained model's.

Prints, in nats a token: the mean absolute log-ratio in truth, and the root mean square of each way's error; and that
of the sum over a trace. The last line is JSON.
"""

import argparse
import copy
import json

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from score_cli.tables import device
from score_cli.tables.device import compute_precision


def random_model() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32_000, num_key_value_heads=4, tie_word_embeddings=False, **sizes))
    with torch.no_grad():
        model.lm_head.weight.mul_(12)
    return model.eval()


def logprobs(model: PreTrainedModel, tokens: Tensor, way: str) -> Tensor:
    """[B, T - 1] logprobs of the tokens after the first."""
    device.BFLOAT16_DEVICES.discard("cpu")
    if way == "float32":
        logits = model(input_ids=tokens).logits
    elif way == "rounded":
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens).logits
        assert logits.dtype == torch.bfloat16
    else:
        device.BFLOAT16_DEVICES.add("cpu")
        with compute_precision(model):
            logits = model(input_ids=tokens).logits
        assert logits.dtype == torch.float32
    return logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint, or none")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model:
        reference = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    else:
        reference = random_model()
    torch.manual_seed(1)
    first = torch.randint(10, 1000, (options.traces, 1))
    with torch.no_grad():
        tokens = reference.generate(
            first, do_sample=True, top_k=0, min_new_tokens=options.tokens, max_new_tokens=options.tokens
        )
    policy = copy.deepcopy(reference)
    adam = torch.optim.Adam(policy.parameters(), lr=5e-6, betas=(0.9, 0.95))
    signs = torch.tensor([1.0, -1.0]).repeat(options.traces // 2)
    for _ in range(options.steps):
        adam.zero_grad()
        (-(signs[:, None] * logprobs(policy, tokens, "float32")).sum() / options.traces).backward()
        adam.step()
    with torch.no_grad():
        ratios = {
            way: (logprobs(policy, tokens, way) - logprobs(reference, tokens, way)).double()
            for way in ("float32", "rounded", "float32 logits")
        }
    truth = ratios.pop("float32")
    found: dict[str, float] = {"truth": truth.abs().mean().item()}
    print(f"truth: mean absolute log-ratio {found['truth']:.5f} nats a token")
    for way, values in ratios.items():
        error = values - truth
        found[way] = error.square().mean().sqrt().item()
        found[f"{way}, trace"] = error.sum(1).square().mean().sqrt().item()
        print(f"{way}: error {found[way]:.5f} nats a token, {found[f'{way}, trace']:.4f} a trace of {options.tokens}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
