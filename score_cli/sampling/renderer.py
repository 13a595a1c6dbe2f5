"""Problems to the tokens that are not sampled: the prompt, and the bridge between attempts; and tokens back to text.

    prompt, y1, bridge, y2, bridge, y3 ...      one strictly growing sequence, never re-encoded

The bridge is whatever the chat template puts between an attempt and the next generation prompt.
It is found once, by rendering a conversation around a sentinel and keeping what follows it, so a
template that trims or strips earlier turns cannot change tokens that were already sampled.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from score_cli.config import SampleConfig
from score_cli.errors import UserError
from score_cli.sampling.control_tokens import ControlTokens
from score_cli.sampling.engine import context_limit
from score_cli.sampling.rollout import Bridge, Dialogue, Rollout, Solves
from score_cli.sampling.seeds import sample_digest
from score_cli.tables.checkpoints import Policy
from score_cli.tables.records import Message, Problem, Trace
from score_cli.tables.schemas import LENGTH, STOP
from score_cli.tasks.prompts import Prompts, prompts_of
from score_cli.tasks.script import Script, fill, places

MOST_TOKENS = 1024
# What a text put among a user's words may cost beyond its own tokens, where it meets them.
SLACK_TOKENS = 8
_SENTINEL = "ATTEMPTTEXT"
# Characters of a refused text that its refusal quotes.
_MOST_SHOWN = 40
# The day that Llama 3's own template names where it is told none.
TEMPLATE_DATE = datetime.date(2024, 7, 26)


class Renderer:
    """Asks the problems of every task in one policy's tokens, and reads finished rollouts back.

    A task's template and bridge are found when its first problem comes, and kept.
    """

    def __init__(self, policy: Policy, config: SampleConfig) -> None:
        """Raises:
        UserError: the context that `config` asks for is longer than the model's.
        """
        self.context = context_limit(policy, config.max_model_len)
        self._policy = policy
        self._correction = config.correction
        self._overrides = config.prompts
        self._script = config.script
        self._tasks: dict[str, TaskRenderer] = {}

    def task(self, name: str) -> "TaskRenderer":
        """The renderer of one task.

        Raises:
            UserError: there is no such task, or its conversations cannot be written in this policy's tokens.
        """
        if name not in self._tasks:
            changes = {field: text for task, field, text in self._overrides if task == name}
            if self._correction is not None:
                changes["correction"] = self._correction
            prompts = prompts_of(name, changes)
            self._tasks[name] = TaskRenderer(self._policy.tokenizer, self._policy.model, prompts)
        return self._tasks[name]

    def prompts_digest(self, tasks: Iterable[str]) -> str:
        """sha256 of the words that tasks are asked with, as a recipe and the settings made them."""
        words = {name: self.task(name).prompts._asdict() for name in tasks}
        return hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode()).hexdigest()

    def prompt(self, problem: Problem) -> list[int]:
        """Prompt tokens of a problem.

        Raises:
            UserError: the problem cannot be asked in this policy's tokens.
        """
        task = self.task(problem.task)
        try:
            tokens = task.prompt(*task.prompts.turns(problem))
        except UserError as error:
            raise UserError(f"problem {problem.problem_id}: {error}") from None
        if not tokens:
            raise UserError(f"problem {problem.problem_id} gives an empty prompt: give it a question")
        return tokens

    def dialogue(self, task: str, attempts: int) -> Dialogue:
        """How a task's traces go on from turn to turn."""
        renderer = self.task(task)
        return Solves(renderer.bridge, attempts) if self._script is None else ScriptedTurns(renderer, self._script)

    def room(self, prompts: Sequence[Sequence[int]], attempts: int) -> int:
        """Tokens that each attempt may have within the model's context, at most `MOST_TOKENS`.

        Raises:
            UserError: the longest prompt leaves no room.
        """
        if self.context is None:
            return MOST_TOKENS
        dialogues = [self.dialogue(task, attempts) for task in self._tasks]
        between = max(dialogue.most_context(0) for dialogue in dialogues)
        # Turns that repeat others' texts cost room as turns do.
        repeated = max(dialogue.most_context(1) for dialogue in dialogues) - between
        longest = max(map(len, prompts))
        room = (self.context - longest - between) // (attempts + repeated)
        if room < 1:
            raise UserError(
                f"a prompt of {longest} tokens leaves no room for {attempts} attempts in the model's context of "
                f"{self.context}: leave long problems out, or lower --attempts"
            )
        return min(room, MOST_TOKENS)

    def rollout(self, problem: Problem, prompt: Sequence[int], index: int, config: SampleConfig) -> Rollout:
        """A trace of a problem, not yet begun."""
        assert config.max_tokens is not None and config.iteration is not None
        task = self.task(problem.task)
        return Rollout(
            problem_id=problem.problem_id,
            sample_index=index,
            prompt=prompt,
            bridge=task.bridge,
            stop_ids=task.stop_ids,
            seeds=[
                sample_digest(config.seed, config.iteration, problem.problem_id, index, attempt)
                for attempt in range(1, config.attempts + 1)
            ],
            max_tokens=config.max_tokens,
            dialogue=self.dialogue(problem.task, config.attempts),
        )

    def trace(self, rollout: Rollout, problem: Problem) -> Trace:
        """A rollout that has come to its end, as a record."""
        return rollout.trace(self.task(problem.task).text)

    def text(self, tokens: list[int], problem: Problem) -> str:
        """The text of an attempt at a problem."""
        return self.task(problem.task).text(tokens)


class TaskRenderer:
    """Turns problems of one task into prompt tokens, and knows the task's bridge and stop tokens.

    A problem's words never hold control tokens, whatever they spell; the task's system prompt and
    correction are the recipe's own words and are encoded as they stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, prompts: Prompts) -> None:
        self._tokenizer = tokenizer
        self.prompts = prompts
        self._check_system()
        between, at_the_end = self._text_after_attempts(prompts.correction)
        stops = _stop_tokens(tokenizer, model)
        # Some templates put a space between an attempt and the token that ends its turn; the policy never writes it.
        unspaced = self._encode(between.lstrip())
        self._ends_turns = bool(unspaced) and (unspaced[0] in stops or unspaced[0] in self._turn_ends(at_the_end))
        if self._ends_turns:
            stops.add(unspaced[0])
        elif tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token, so no attempt could end: set eos_token")
        self.stop_ids = frozenset(stops)
        self._control = ControlTokens(tokenizer, stops)
        self._bridges: dict[str, Bridge] = {}
        self.bridge = self.bridge_of(prompts.correction)
        # The control tokens of every prompt of some roles: those that the template writes around any words.
        self._frames: dict[tuple[str, ...], list[int]] = {}

    def prompt(self, first_turn: str, before: Sequence[Message] = ()) -> list[int]:
        """Tokens of the prompt that ends with a user's turn, up to where the model starts to write.

        Args:
            before: the turns of the problem's own chat before that one; its system message replaces the task's.
        Raises:
            UserError: a turn spells a control token, and the tokenizer has no other way to write it, or the template
                has no place for a turn.
        """
        turns = [*before, _user(first_turn)]
        tokens, frame = self._encode_turns(turns), self._frame(turns)
        if before:
            self._check_shown(turns)
        if self._control.among(tokens) == frame:
            return tokens
        mark = self._control.mark_for("".join(turn["content"] for turn in turns) + self._turns_text(turns))
        if self._tokenizer.is_fast:
            hidden = [Message(role=turn["role"], content=self._control.hide(turn["content"], mark)) for turn in turns]
            whole = self._tokenizer.chat_template is None
            tokens = self._control.encode_hidden(self._turns_text(hidden), mark, add_special_tokens=whole)
        if self._control.among(tokens) != frame:
            raise UserError(
                "the question spells a control token, which this tokenizer cannot write as plain text: "
                "leave the problem out, or spell the token otherwise"
            )
        return tokens

    def prompt_with(self, words: str, texts: Mapping[str, str]) -> list[int]:
        """As `prompt`, of words with texts in their places; neither these nor the words hold control tokens.

        Raises:
            UserError: the words spell a control token, and the tokenizer has no other way to write it.
        """
        try:
            return self.prompt(fill(words, texts))
        except UserError:
            # As in `bridge_with`: names that cannot be written as text are left out.
            return self.prompt(fill(words, {role: self._control.without(text) for role, text in texts.items()}))

    def attempt_tokens(self, text: str) -> list[int]:
        """Tokens of a turn that says this text and ends: what a policy would have sampled to say it.

        Raises:
            UserError: the text spells a token that would end the turn, or holds what the tokenizer has no tokens for.
        """
        tokens = self._encode(text)
        ends = self.stop_ids & set(tokens)
        if ends:
            raise UserError(f"its text spells {self._tokenizer.convert_ids_to_tokens(min(ends))}, which ends a turn")
        if self._tokenizer.unk_token_id is not None and self._tokenizer.unk_token_id in tokens:
            shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
            raise UserError(f"its text {shown!r} holds characters that the tokenizer has no tokens for")
        return [*tokens, *self.bridge.end_of_turn]

    def bridge_of(self, words: str) -> Bridge:
        """What stands between a turn and the next, where the user says these words, as they stand."""
        if words not in self._bridges:
            self._bridges[words] = self._bridge(self._text_after_attempts(words)[0], self._encode)
        return self._bridges[words]

    def bridge_with(self, words: str, texts: Mapping[str, str], most: int) -> Bridge:
        """As `bridge_of`, with texts that the model wrote in the words' places; these never hold control tokens.

        Args:
            texts: by role; of each, as much as `most` tokens hold.
        """
        short = {role: self._first_tokens(text, most) for role, text in texts.items()}
        frame = self._control.among(self.bridge_of(fill(words, dict.fromkeys(texts, "x"))).after(LENGTH))
        said = fill(words, short)
        between = self._text_after_attempts(said)[0]
        bridge = self._bridge(between, self._encode)
        if self._control.among(bridge.after(LENGTH)) != frame and self._tokenizer.is_fast:
            mark = self._control.mark_for(said + between)
            hidden = fill(words, {role: self._control.hide(text, mark) for role, text in short.items()})
            between = self._text_after_attempts(hidden)[0]
            bridge = self._bridge(between, lambda text: self._control.encode_hidden(text, mark))
        if self._control.among(bridge.after(LENGTH)) != frame:
            # This tokenizer cannot write their names as text: they are left out.
            said = fill(words, {role: self._control.without(text) for role, text in short.items()})
            bridge = self._bridge(self._text_after_attempts(said)[0], self._encode)
        return bridge

    def plain_tokens(self, text: str) -> list[int]:
        """Tokens of a text of the model or of a table, control tokens in it written as text."""
        if not self._tokenizer.is_fast:
            return self._encode(self._control.without(text))
        mark = self._control.mark_for(text)
        return self._control.encode_hidden(self._control.hide(text, mark), mark)

    def text(self, token_ids: list[int]) -> str:
        """The text of sampled tokens, without the stop token that may end them."""
        if token_ids and token_ids[-1] in self.stop_ids:
            token_ids = token_ids[:-1]
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _bridge(self, between: str, encode: Callable[[str], list[int]]) -> Bridge:
        """The tokens of what the template writes after an attempt, its turn's end apart."""
        if self._ends_turns:
            tokens = encode(between.lstrip())
            return Bridge(tokens[:1], tokens[1:])
        return Bridge([self._tokenizer.eos_token_id], encode(between))

    def _first_tokens(self, text: str, most: int) -> str:
        """As much of a text as so many tokens hold, control tokens in it written as text."""
        tokens = self.plain_tokens(text)
        if len(tokens) <= most:
            return text
        return str(self._tokenizer.decode(tokens[:most], clean_up_tokenization_spaces=False))

    def _opening(self) -> list[Message]:
        system = self.prompts.system
        return [] if system is None else [Message(role="system", content=system)]

    def _frame(self, turns: Sequence[Message]) -> list[int]:
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._frames:
            plain = [Message(role=role, content="x") for role in roles]
            self._frames[roles] = self._control.among(self._encode_turns(plain))
        return self._frames[roles]

    def _turns_text(self, turns: Sequence[Message]) -> str:
        """The prompt's text around some turns."""
        if self._tokenizer.chat_template is None:
            return "\n\n".join(turn["content"] for turn in turns)
        opening = [] if turns[0]["role"] == "system" else self._opening()
        return self._render([*opening, *turns])

    def _encode_turns(self, turns: Sequence[Message]) -> list[int]:
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer.encode(self._turns_text(turns), add_special_tokens=True))
        return self._encode(self._turns_text(turns))

    def _check_shown(self, turns: Sequence[Message]) -> None:
        """See that the template shows a chat's system and user turns; what it makes of a model's is its own affair."""
        text = self._turns_text(turns)
        for turn in turns:
            if turn["role"] != "assistant" and turn["content"].strip() not in text:
                raise UserError(
                    f"the chat template leaves out the chat's {turn['role']} message: "
                    "put its words into the user's turn, or use a tokenizer whose template shows it"
                )

    def _render(self, messages: Sequence[Message], *, ask: bool = True) -> str:
        """The template's text of some messages; with `ask`, up to where the model starts to write."""
        try:
            return self._apply_template(messages, ask)
        except Exception as error:  # a boundary: a template is a program of its own, and raises what it will
            raise UserError(
                f"the chat template cannot be rendered ({_reason(error)}): use a tokenizer whose template can"
            ) from None

    def _apply_template(self, messages: Sequence[Message], ask: bool) -> str:
        rendered = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=ask,
            # Templates that tell the date would put the clock into the traces.
            strftime_now=lambda form: TEMPLATE_DATE.strftime(form),
        )
        return str(rendered)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _text_after_attempts(self, said: str) -> tuple[str, str]:
        """What the template writes after an attempt: before the next one, and where nothing follows.

        Args:
            said: what the user says between the two.
        """
        if self._tokenizer.chat_template is None:
            return f"\n\n{said}\n\n", ""
        words = f"{self.prompts.system}{said}{self._tokenizer.chat_template}"
        sentinel = _SENTINEL
        while sentinel in words:
            sentinel += _SENTINEL[-1]
        turns = [*self._opening(), _user("question"), Message(role="assistant", content=sentinel)]
        rendered = self._render([*turns, _user(said)])
        if rendered.count(sentinel) != 1:
            raise UserError(
                "the chat template does not repeat an assistant turn exactly once, so no second attempt can follow it: "
                "use a tokenizer whose template shows earlier turns"
            )
        return rendered.split(sentinel)[1], self._render(turns, ask=False).split(sentinel)[-1]

    def _check_system(self) -> None:
        """See that the template takes the system prompt, where the prompts have one.

        Raises:
            UserError: it refuses system turns, or leaves them out.
        """
        system = self.prompts.system
        if system is None or self._tokenizer.chat_template is None:
            return
        advice = "leave the system prompt out, and put its words before {question} in `first`"
        plain = self._render([_user("question")])
        try:
            rendered = self._apply_template([*self._opening(), _user("question")], True)
        except Exception as error:  # as in `_render`
            raise UserError(f"the chat template takes no system prompt ({_reason(error)}): {advice}") from None
        if system.strip() not in rendered or rendered == plain:
            raise UserError(f"the chat template leaves the system prompt out of the conversation: {advice}")

    def _turn_ends(self, at_the_end: str) -> set[int]:
        """The token that ends an assistant's turn though nothing names it as a stop, such as <|im_end|>.

        A token that only opens the next user's turn does not follow the last turn of a conversation.
        """
        special = {index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(self._tokenizer.all_special_ids)
        special -= {self._tokenizer.unk_token_id, self._tokenizer.bos_token_id}
        return special & set(self._encode(at_the_end.lstrip())[:1])


class ScriptedTurns:
    """The dialogue of a script: who speaks next is read from the model's own words."""

    def __init__(self, task: TaskRenderer, script: Script) -> None:
        self.first = script.turns[0]
        self.names_roles = not script.only_solves
        self._task = task
        self._script = script

    def after(self, rollout: Rollout) -> tuple[str, list[int]] | None:
        """See `Dialogue.after`."""
        reason, newest = rollout.finish_reasons[-1], len(rollout.finish_reasons)
        role = self._script.next_role(rollout.roles, lambda: self._text(rollout, newest) if reason == STOP else None)
        if role is None:
            return None
        words = drawn_words(self._words(role), rollout.seeds, newest)
        # Of each role that the words speak of, the newest turn; one that has not spoken has said nothing.
        turns = {said: turn for turn, said in enumerate(rollout.roles, start=1) if said in places(words)}
        if not places(words):
            return role, self._task.bridge_of(words).after(reason)
        texts = {said: self._text(rollout, turns[said]) if said in turns else "" for said in places(words)}
        return role, self._task.bridge_with(words, texts, rollout.max_tokens).after(reason)

    def most_context(self, max_tokens: int) -> int:
        """See `Dialogue.most_context`; a text may take a few tokens more among others than it has by itself."""
        total = 0
        for role in self._script.roles[1:]:
            total += max(self._context(words, max_tokens) for words in self._words(role))
        return total

    def _context(self, words: str, max_tokens: int) -> int:
        bridge, texts = self._task.bridge_of(fill(words, {})), len(places(words))
        return len(bridge.end_of_turn) + len(bridge.rest) + texts * (max_tokens + SLACK_TOKENS)

    def _words(self, role: str) -> list[str]:
        return self._script.words(role) or [self._task.prompts.correction]

    def _text(self, rollout: Rollout, turn: int) -> str:
        return self._task.text(rollout.attempt_tokens(turn))


def drawn_words(words: Sequence[str], seeds: Sequence[bytes], turn: int) -> str:
    """The words before a turn, counted from 0: of several, those that the turn's seed draws."""
    if len(words) == 1:
        return words[0]
    digest = hashlib.sha256(b"ask" + seeds[turn]).digest()
    return words[int.from_bytes(digest) % len(words)]


def _user(content: str) -> Message:
    return Message(role="user", content=content)


def _reason(error: Exception) -> str:
    """What an exception says, or its kind where it says nothing."""
    return str(error) or type(error).__name__


def _stop_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> set[int]:
    """Every end-of-sequence id that the model or its tokenizer names."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return found
