"""Chat templates: messages to the text a model was trained on, whatever the model's own template lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

Message = dict[str, str]

# Of models that ship none. Each ends a turn with a token of its vocabulary, but for PLAIN.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BAICHUAN = (
    "{% for m in messages %}"
    "{{ {'system': '', 'user': '<reserved_106>', 'assistant': '<reserved_107>'}[m['role']] + m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user\\'s questions.' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ ('' if loop.previtem and loop.previtem['role'] == 'assistant' else ' ') "
    "+ 'USER: ' + m['content'] }}"
    "{% else %}{{ ' ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% else %}{{ ('User: ' if m['role'] == 'user' else 'Assistant: ') + m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def missing_template(vocabulary: dict[str, int], name: str) -> tuple[str, tuple[str, ...]]:
    """(template, texts that end a reply) for a model called ``name`` that ships no template."""
    if {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys():
        return CHATML, ("<|im_end|>",)
    if {"<reserved_106>", "<reserved_107>"} <= vocabulary.keys():
        return BAICHUAN, ("<reserved_106>",)
    if "vicuna" in name.lower():
        return VICUNA, ()
    return PLAIN, ("\nUser:",)


class ChatTemplate:
    """Messages to the text a model was trained on.

    ``system_role`` is ``native``, or ``merged`` where the template refuses or drops a system message
    and its text goes in front of the first user message. ``default_system`` is the system message that
    the template would put where none is given (Qwen2.5: "You are Qwen, …"); it is kept out, because it
    gives the model a character that nobody asked for. ``stops`` are texts that end a reply.
    """

    def __init__(self, tokenizer: TokenizerWrapper, name: str = "") -> None:
        """``name`` is what the model calls itself; some families are known only by it."""
        self.tokenizer = tokenizer
        self.override: str | None = None
        self.stops: tuple[str, ...] = ()
        self.default_system = ""
        if not tokenizer.has_chat_template:
            self.override, self.stops = missing_template(tokenizer.get_vocab(), name)
        probe = "zyxsystemzyx"
        user = {"role": "user", "content": "hi"}
        try:
            text = self._apply([{"role": "system", "content": probe}, user], True)
        except Exception:  # jinja's own error, or whatever a template raises
            text = ""
        self.system_role = "native" if probe in text else "merged"
        if self.system_role == "native" and self.override is None:
            before, after = text.split(probe, 1)
            self.default_system = self._find_default(before, after, user)

    def _find_default(self, before: str, after: str, user: Message) -> str:
        """What stands between ``before`` and ``after`` where no system message is given; "" if it can't be kept out."""
        try:
            bare = self._apply([user], True)
            empty = self._apply([{"role": "system", "content": ""}, user], True)
        except Exception:
            return ""
        fits = bare.startswith(before) and bare.endswith(after)
        default = bare[len(before) : len(bare) - len(after)] if fits else ""
        return default if default and default not in empty else ""

    def _apply(self, messages: list[Message], generate: bool, think: bool = False) -> str:
        options: dict[str, Any] = {"add_generation_prompt": generate, "enable_thinking": think}
        if self.override:
            options["chat_template"] = self.override
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def opening(self, think: bool) -> str:
        """What opens the assistant's turn, and with it a reasoning block or an empty one."""
        user = [{"role": "user", "content": "hi"}]
        whole, before = self.render(user, True, think), self.render(user, False, think)
        return whole.removeprefix(before)

    def render(self, messages: list[Message], generate: bool = True, think: bool = False) -> str:
        """The prompt text; ``generate`` opens the assistant's turn, ``think`` lets it reason. Raises ``ModelError``."""
        given = bool(messages) and messages[0]["role"] == "system"
        if self.system_role == "merged" and given:
            system, rest = messages[0]["content"], messages[1:]
            messages = [{**m, "content": f"{system}\n\n{m['content']}"} if i == 0 else m for i, m in enumerate(rest)]
        elif self.default_system and not given:
            messages = [{"role": "system", "content": ""}, *messages]
        try:
            return self._apply(messages, generate, think)
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise ModelError(f"this model's chat template failed: {line}") from None

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text; a template writes its own special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)


def until_stop(text: str, stops: tuple[str, ...], last: bool) -> tuple[str, bool]:
    """(what of ``text`` may be shown, whether a stop text was met); an unfinished stop text is held back."""
    for stop in stops:
        if (at := text.find(stop)) >= 0:
            return text[:at], True
    if last:
        return text, False
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held], False
