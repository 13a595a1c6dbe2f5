"""How far apart sampler's and trainer's logprobs of a batch may lie on one policy: what rounding explains, and no more.

In bfloat16 each logit carries noise of some size s, whatever the temperature T. A token's logprob then carries about
s / T times how open the choice is: nothing where one token has all the probability, all of it where many share it.
Mean entropy in nats, up to 1, stands for that openness. Measured on untrained two-layer models (gpt2 and qwen2,
vocabulary 23, weights of 1 to 12 times their usual size, T = 0.1 to 3, mean entropy 0.07 to 3.1 nats, bfloat16 emulated
on the CPU):

    rounding alone                0.0002 to 0.008 nats a token; divided by min(1, entropy) / T, 0.0003 to 0.008
    a policy of another seed      0.115 (T = 3, nearly uniform) to 79; divided the same way, at least 0.28

A real model of 135 million parameters sits at 0.036 (T = 1) by rounding alone. So 0.15 leaves rounding four times that
and stays at half of what the most alike strangers show. That a policy is stale by one small step no logprob can tell in
bfloat16: the digests of its weights do.
"""

FLOAT32_LIMIT = 1e-3
# Mean absolute difference from which an update is worth a warning, nats a token.
WARNING = 0.05
# Noise of a logit that is taken for rounding, nats, and the least limit that it gives.
LOGIT_NOISE = 0.15
LEAST_LIMIT = 0.075


def logprob_limit(entropy: float, temperature: float, *, bfloat16: bool) -> float:
    """Largest mean absolute difference of logprobs that rounding explains, nats a token.

    Args:
        entropy: mean over the batch's tokens, nats, of the distribution sampled from.
        temperature: that it was sampled at.
    """
    if not bfloat16:
        return FLOAT32_LIMIT
    return max(LEAST_LIMIT, LOGIT_NOISE * min(1.0, entropy) / temperature)
