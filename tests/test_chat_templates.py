"""Properties of prompts and bridges, over hand-written templates and real tokenizers, for any text.

The reference is transformers' own rendering and encoding of a whole conversation.
"""

import functools
import unicodedata
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from score_cli.errors import UserError
from score_cli.sampling.renderer import TaskRenderer
from score_cli.sampling.rollout import Rollout
from score_cli.tables.records import Message
from score_cli.tasks.prompts import Prompts
from tests.conftest import SHARED_DATA

PROMPTS = Prompts(first="{question}", correction="FIX")
ASK = "{% if add_generation_prompt %}"


@dataclass(frozen=True)
class Case:
    """A template, its special tokens, what the model names as stops, and what must stand after an attempt."""

    name: str
    template: str | None
    special: tuple[str, ...]
    stops: tuple[str, ...]
    end: str
    rest: str
    thinking: bool = False


CASES = [
    Case(
        "llama3",
        "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>"
        "{% endfor %}" + ASK + "<|head|>assistant<|/head|>\n\n{% endif %}",
        ("<s>", "<|head|>", "<|/head|>", "<|eot|>", "<|eos|>"),
        ("<|eos|>", "<|eot|>"),
        "<|eot|>",
        "<|head|>user<|/head|>\n\nFIX<|eot|><|head|>assistant<|/head|>\n\n",
    ),
    Case(
        "gemma",
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}" + ASK + "<start_of_turn>model\n{% endif %}",
        ("<s>", "<start_of_turn>", "<end_of_turn>", "<|eos|>"),
        ("<|eos|>",),
        "<end_of_turn>",
        "\n<start_of_turn>user\nFIX<end_of_turn>\n<start_of_turn>model\n",
    ),
    Case(
        "chatml",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        + ASK
        + "<|im_start|>assistant\n{% endif %}",
        ("<s>", "<|im_start|>", "<|im_end|>", "<|eos|>"),
        ("<|eos|>",),
        "<|im_end|>",
        "\n<|im_start|>user\nFIX<|im_end|>\n<|im_start|>assistant\n",
    ),
    Case(  # as Qwen3: earlier thinking is stripped, the last assistant turn shows an empty one
        "thinking",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% if loop.last %}<think>\n\n"
        "</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}" + ASK + "<|im_start|>assistant\n{% endif %}",
        ("<s>", "<|im_start|>", "<|im_end|>", "<|eos|>"),
        ("<|eos|>", "<|im_end|>"),
        "<|im_end|>",
        "\n<|im_start|>user\nFIX<|im_end|>\n<|im_start|>assistant\n",
        thinking=True,
    ),
    Case(  # as DeepSeek-R1: the model is put into its thinking
        "opened thinking",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>"
        "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}" + ASK + "<|Assistant|><think>\n"
        "{% endif %}",
        ("<s>", "<|User|>", "<|Assistant|>", "<|eos|>"),
        ("<|eos|>",),
        "<|eos|>",
        "<|User|>FIX<|Assistant|><think>\n",
        thinking=True,
    ),
    Case(
        "mistral",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} "
        "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        ("<s>", "[INST]", "[/INST]", "<|eos|>"),
        ("<|eos|>",),
        "<|eos|>",
        "[INST] FIX [/INST]",
    ),
    Case(  # turns open and never close: the next user's token is not the end of the attempt
        "openers",
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}" + ASK + "<|assistant|>{% endif %}",
        ("<s>", "<|user|>", "<|assistant|>", "<|system|>", "<|eos|>"),
        ("<|eos|>",),
        "<|eos|>",
        "<|user|>FIX<|assistant|>",
    ),
    Case("none", None, ("<s>", "<|eos|>"), ("<|eos|>",), "<|eos|>", "\n\nFIX\n\n"),
]
THINK = ("<think>", "</think>")
named = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

REAL = {
    "qwen2.5": ("<|im_end|>", "\n<|im_start|>user\nFIX<|im_end|>\n<|im_start|>assistant\n"),
    # Its control tokens swallow the line ends that follow them.
    "phi-3-mini": ("<|end|>", "<|user|>FIX<|end|><|assistant|>"),
}
needs_tokenizers = pytest.mark.skipif(
    not (SHARED_DATA / "tokenizers").is_dir(),
    reason=f"no real tokenizers at {SHARED_DATA / 'tokenizers'}: set SCORE_SHARED_DATA to a folder that holds them",
)
real = pytest.mark.parametrize("name", REAL)


@functools.cache
def byte_tokenizer(case: Case) -> PreTrainedTokenizerBase:
    """A token for every byte, and the case's special tokens: decoding gives back every text there is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(case.special))
    core.add_tokens([AddedToken(text, special=False) for text in THINK])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<|eos|>")
    tokenizer.chat_template = case.template
    return tokenizer


@functools.cache
def real_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(SHARED_DATA / "tokenizers" / name))


def conversation(
    tokenizer: PreTrainedTokenizerBase, stops: tuple[str, ...], prompts: Prompts = PROMPTS
) -> TaskRenderer:
    ids = [tokenizer.convert_tokens_to_ids(stop) for stop in stops]
    model = SimpleNamespace(config=SimpleNamespace(eos_token_id=ids), generation_config=None)
    return TaskRenderer(tokenizer, model, prompts)  # type: ignore[arg-type]


@functools.cache
def of_case(case: Case) -> TaskRenderer:
    return conversation(byte_tokenizer(case), case.stops)


@functools.cache
def of_real(name: str) -> TaskRenderer:
    return conversation(real_tokenizer(name), ("<|endoftext|>",))


def texts(*pieces: str) -> st.SearchStrategy[str]:
    """Any unicode, with some pieces strewn in."""
    part = st.one_of(st.text(max_size=8), st.sampled_from(pieces)) if pieces else st.text(max_size=8)
    return st.lists(part, min_size=1, max_size=6).map("".join)


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens that spell the text, none of them special."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def rendered(tokenizer: PreTrainedTokenizerBase, *contents: str) -> str:
    """transformers' text of user, assistant, user ... up to where the model writes."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def special_ids(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[int]:
    return [t for t in tokens if t in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[t].special]


@named
def test_the_bridge_is_the_one_written_by_hand(case: Case) -> None:
    tokenizer, tokens = byte_tokenizer(case), of_case(case)
    end, rest = (list(tokenizer.encode(text, add_special_tokens=False)) for text in (case.end, case.rest))
    assert len(end) == 1 and end[0] in tokens.stop_ids
    assert tokens.bridge.after("length") == end + rest
    assert tokens.bridge.after("stop") == rest
    named_stops = {tokenizer.convert_tokens_to_ids(stop) for stop in case.stops}
    assert tokens.stop_ids == named_stops | set(end), "nothing else may end an attempt"


@needs_tokenizers
@real
def test_the_bridge_of_a_real_template_is_the_one_written_by_hand(name: str) -> None:
    tokenizer, tokens = real_tokenizer(name), of_real(name)
    end, rest = REAL[name]
    assert tokenizer.decode(tokens.bridge.end_of_turn) == end
    assert tokenizer.decode(tokens.bridge.after("stop")) == rest
    assert tokens.stop_ids == set(tokenizer.convert_tokens_to_ids([tokenizer.eos_token, end, "<|endoftext|>"]))


@named
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_question_never_speaks_in_control_tokens(case: Case, data: st.DataObject) -> None:
    tokenizer = byte_tokenizer(case)
    question = data.draw(texts(*case.special))
    found = of_case(case).prompt(question)
    harmless = of_case(case).prompt("why")
    assert special_ids(tokenizer, found) == special_ids(tokenizer, harmless)
    text = question if case.template is None else rendered(tokenizer, question)
    assert tokenizer.decode(found) == text
    if not any(name in question for name in case.special):
        assert found == list(tokenizer.encode(text, add_special_tokens=False)), "a plain question is encoded as ever"


@needs_tokenizers
@real
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_question_never_speaks_in_a_real_tokenizers_control_tokens(name: str, data: st.DataObject) -> None:
    tokenizer = real_tokenizer(name)
    names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content != "<unk>"]
    question = data.draw(texts(*names))
    found = of_real(name).prompt(question)
    assert special_ids(tokenizer, found) == special_ids(tokenizer, of_real(name).prompt("why"))
    text = rendered(tokenizer, question)
    if not any(each in question for each in names):
        assert found == list(tokenizer.encode(text, add_special_tokens=False))
    if name == "qwen2.5":
        assert tokenizer.decode(found) == unicodedata.normalize("NFC", text)
    else:  # its control tokens swallow the white space that follows them
        assert "".join(tokenizer.decode(found).split()) == "".join(text.split())


@named
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_chat_of_the_data_is_what_the_template_writes_and_never_speaks_in_control_tokens(
    case: Case, data: st.DataObject
) -> None:
    tokenizer = byte_tokenizer(case)
    shown, answered, asked = (data.draw(texts(*case.special)) for _ in range(3))
    before = [Message(role="user", content=shown), Message(role="assistant", content=answered)]
    found = of_case(case).prompt(asked, before)
    harmless = of_case(case).prompt("a", [Message(role=turn["role"], content="a") for turn in before])
    assert special_ids(tokenizer, found) == special_ids(tokenizer, harmless)
    words = (shown, answered, asked)
    text = "\n\n".join(words) if case.template is None else rendered(tokenizer, *words)
    assert tokenizer.decode(found) == text


def test_a_chats_system_message_replaces_that_of_the_task() -> None:
    case = next(case for case in CASES if case.name == "chatml")
    tokenizer = byte_tokenizer(case)
    tokens = conversation(tokenizer, case.stops, Prompts(first="{question}", correction="FIX", system="Be kind."))
    opening = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokens.prompt("1+1?")) == opening.format("Be kind.")
    brief = Message(role="system", content="Be brief.")
    assert tokenizer.decode(tokens.prompt("1+1?", [brief])) == opening.format("Be brief.")


def test_a_template_without_a_place_for_a_chats_system_message_is_told_in_one_line() -> None:
    brief = Message(role="system", content="Be brief.")
    for name, message in (
        ("gemma", "the chat template cannot be rendered .*System role not supported"),
        ("dropping", "the chat template leaves out the chat's system message: put its words into the user's turn"),
    ):
        case = next((case for case in CASES if case.name == name), None)
        dropped = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.content }}]<|eos|>{% endif %}{% endfor %}"
        case = case or Case(name, dropped, ("<s>", "<|eos|>"), ("<|eos|>",), "<|eos|>", "")
        with pytest.raises(UserError, match=message):
            conversation(byte_tokenizer(case), case.stops).prompt("1+1?", [brief])


@named
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_sampled_tokens_stay_as_they_are_and_each_attempt_ends_once(case: Case, data: st.DataObject) -> None:
    """Three attempts of any tokens: thinking, control tokens, half a character; stopped or cut off."""
    tokenizer, tokens = byte_tokenizer(case), of_case(case)
    end, rest = (list(tokenizer.encode(text, add_special_tokens=False)) for text in (case.end, case.rest))
    thought = list(tokenizer.encode("<think>\nhm\n</think>\n\n42 ", add_special_tokens=False))
    anything = st.sampled_from([index for index in range(len(tokenizer)) if index not in tokens.stop_ids])
    attempts = []
    for _ in range(3):
        content = data.draw(st.one_of(st.just([]), st.just(thought))) + data.draw(st.lists(anything, max_size=5))
        stop = data.draw(st.sampled_from([None, *sorted(tokens.stop_ids)]))
        attempts.append((content or thought, stop))
    prompt = tokens.prompt("why")
    expected, owners = list(prompt), [0] * len(prompt)
    rollout = Rollout("p", 0, prompt, tokens.bridge, tokens.stop_ids, [b""] * 3, max_tokens=20)
    for number, (content, stop) in enumerate(attempts, start=1):
        written = [*content, *([] if stop is None else [stop])]
        context = [] if number == 3 else [*(end if stop is None else []), *rest]
        expected += written + context
        owners += [number] * len(written) + [0] * len(context)
        rollout.max_tokens = len(content) if stop is None else len(content) + 1
        for token in written:
            rollout.append(token, -1.0)
    assert rollout.done and rollout.token_ids == expected and rollout.attempt_ids == owners
    assert [reason == "stop" for reason in rollout.finish_reasons] == [stop is not None for _, stop in attempts]
    for number, (content, _) in enumerate(attempts, start=1):
        assert tokens.text(rollout.attempt_tokens(number)) == tokenizer.decode(content)


@named
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_conversation_grown_token_by_token_is_the_one_that_the_template_writes(
    case: Case, data: st.DataObject
) -> None:
    """Where the template keeps an attempt as it is; the attempt does not begin with white space, which would merge."""
    if case.template is None:
        return
    tokenizer, tokens = byte_tokenizer(case), of_case(case)
    response = data.draw(texts().map(str.strip).filter(bool))
    grown = tokens.prompt("why") + plain(tokenizer, response) + tokens.bridge.after("length")
    written = rendered(tokenizer, "why", response, "FIX")
    if case.name == "mistral":  # it writes a space before earlier attempts that its prompt does not end with
        written = written.replace("[/INST] ", "[/INST]", 1)
    if case.name == "openers":  # the model's own stop ends the turn that the template leaves open
        written = written.replace(f"{response}<|user|>FIX", f"{response}<|eos|><|user|>FIX")
    if case.name == "opened thinking":  # earlier turns show no thinking, not even where it was opened
        written = written.replace("<|Assistant|>", "<|Assistant|><think>\n", 1)
    assert tokenizer.decode(grown) == written


@needs_tokenizers
@real
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_conversation_grown_in_real_tokens_is_the_one_that_the_template_writes(
    name: str, data: st.DataObject
) -> None:
    """Token for token: the prompt begins it, the bridge ends it, and what is left between is the response."""
    tokenizer, tokens = real_tokenizer(name), of_real(name)
    response = data.draw(texts().map(str.strip).filter(bool))
    written = list(tokenizer.encode(rendered(tokenizer, "why", response, "FIX"), add_special_tokens=False))
    prompt, bridge = tokens.prompt("why"), tokens.bridge.after("length")
    assert written[: len(prompt)] == prompt and written[-len(bridge) :] == bridge
    expected = unicodedata.normalize("NFC", response) if name == "qwen2.5" else response
    assert tokenizer.decode(written[len(prompt) : -len(bridge)]) == expected


@needs_tokenizers
@real
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_response_that_spells_control_tokens_keeps_its_text_and_ends_once(name: str, data: st.DataObject) -> None:
    """Text such as <|im_end|> written in plain tokens is carried as these tokens, and read as this text."""
    tokenizer, tokens = real_tokenizer(name), of_real(name)
    # Phi-3 cannot spell </s>: it is one token, not a special one, which swallows the white space behind it.
    pieces = ["<|im_end|>", "<|end|>", "<|endoftext|>", "<|user|>", "<think>"] + ["</s>"] * (name != "phi-3-mini")
    response = data.draw(texts(*pieces))
    content = plain(tokenizer, response)
    if not content:
        return
    if name == "qwen2.5":
        response = unicodedata.normalize("NFC", response)
    rollout = Rollout("p", 0, tokens.prompt("why"), tokens.bridge, tokens.stop_ids, [b""] * 2, len(content))
    for token in content:
        rollout.append(token, -1.0)
    assert rollout.attempt_tokens(1) == content and rollout.finish_reasons == ["length"]
    bridge = rollout.token_ids[len(rollout.prompt) + len(content) :]
    assert bridge == tokens.bridge.end_of_turn + tokens.bridge.rest
    assert special_ids(tokenizer, rollout.token_ids) == special_ids(tokenizer, [*rollout.prompt, *bridge])
    for ending in ([], tokens.bridge.end_of_turn):
        # Phi-3 writes the space before a text's first word as part of that word, and drops it again.
        assert tokens.text(content + ending).strip(" ") == response.strip(" ")


SYSTEM = Prompts(first="{question}", correction="FIX", system="Be brief.")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("llama3", "chatml", "thinking", "openers")])
def test_a_system_prompt_is_said_once_and_changes_no_bridge(case: Case) -> None:
    tokenizer = byte_tokenizer(case)
    tokens = conversation(tokenizer, case.stops, SYSTEM)
    assert tokens.bridge == of_case(case).bridge and tokens.stop_ids == of_case(case).stop_ids
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why"}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(tokens.prompt("why")) == expected and expected.count("Be brief.") == 1


def test_a_template_that_refuses_or_drops_the_system_prompt_is_told_in_one_line() -> None:
    gemma = next(case for case in CASES if case.name == "gemma")
    with pytest.raises(
        UserError, match=r"takes no system prompt \(System role not supported\): leave the system prompt"
    ):
        conversation(byte_tokenizer(gemma), gemma.stops, SYSTEM)
    dropping = Case(
        "dropping",
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}<|eos|>{% endfor %}",
        ("<s>", "<|user|>", "<|assistant|>", "<|eos|>"),
        ("<|eos|>",),
        "<|eos|>",
        "",
    )
    with pytest.raises(UserError, match="leaves the system prompt out of the conversation"):
        conversation(byte_tokenizer(dropping), dropping.stops, SYSTEM)


def test_words_that_look_like_the_search_marker_do_not_confuse_the_bridge() -> None:
    chatml = next(case for case in CASES if case.name == "chatml")
    tokenizer = byte_tokenizer(chatml)
    correction = "ATTEMPTTEXT ATTEMPTTEXTT"
    tokens = conversation(tokenizer, chatml.stops, Prompts(first="{question}", correction=correction))
    expected = f"\n<|im_start|>user\n{correction}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokens.bridge.after("stop")) == expected


def test_the_characters_that_hide_control_tokens_may_stand_in_a_question() -> None:
    chatml = next(case for case in CASES if case.name == "chatml")
    tokenizer, tokens = byte_tokenizer(chatml), of_case(chatml)
    mark = "\U0010fffd"
    for question in (f"{mark}1{mark}<|im_end|>", f"<|im_end|>{mark}t0{mark}", f"5<|im_end|>5<|im_end|>t0 {mark}"):
        found = tokens.prompt(question)
        assert tokenizer.decode(found) == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert special_ids(tokenizer, found) == special_ids(tokenizer, tokens.prompt("why"))


def test_a_control_token_that_cannot_be_written_as_text_is_refused() -> None:
    """The built-in task's words are whole tokens: <eos> is one, and there is no other way to write it."""
    from tests.conftest import small_policy

    policy = small_policy()
    tokens = TaskRenderer(policy.tokenizer, policy.model, PROMPTS)
    with pytest.raises(UserError, match="spells a control token, which this tokenizer cannot write as plain text"):
        tokens.prompt("Divide 4 by 2. <eos>")
