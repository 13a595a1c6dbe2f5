"""The built-in task's tokenizer: a word for every digit and every fixed piece of text."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from score_cli.tasks.division import CHAT_TEMPLATE, END_OF_TURN, PAD, UNKNOWN, WORDS


def make_tokenizer(further: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose decoding is concatenation: decode(encode(text)) is text.

    Args:
        further: words beyond the task's own.
    """
    vocabulary = list(dict.fromkeys([PAD, END_OF_TURN, UNKNOWN, *"0123456789", *WORDS, *further]))
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    # Longest first, so that ". " is never read as part of something shorter.
    words = sorted(vocabulary[3:], key=len, reverse=True)
    pattern = "|".join("".join(f"\\x{{{ord(letter):x}}}" for letter in word) for word in words)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
