"""Turns of a conversation with a speech model, in the template of its authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.modality import is_ids

#: a part of a conversation: text, sound, or ids (tokens,)
Part: TypeAlias = "str | Tensor | Sound"

#: keys of a template that stand for turns
ROLES = ("system", "user", "assistant")
#: keys of a template that are required, and further ones
REQUIRED, OPTIONAL = (*ROLES, "reply", "default_system"), ("start", "default_spoken_system")
#: where the content of a turn goes
CONTENT = "{content}"


@dataclass(frozen=True, eq=False)
class Sound:
    """Sound in a conversation.

    Attributes:
        value: what a prompt that is sound can be: a file, a waveform, a pair of samples and
            sampling rate, or a dict of the package datasets.
    """

    value: Any


@dataclass(frozen=True)
class TurnTemplate:
    """How a speech model reads a conversation.

    Attributes:
        system: a system prompt, with `{content}` for its text.
        user: a turn of the user, with `{content}`.
        assistant: an earlier reply, with `{content}` for its tokens without the end token.
        reply: text before the new reply.
        default_system: content of the system prompt where the conversation has none.
        start: text before all turns.
        default_spoken_system: the same where the first question is sound; by default
            `default_system`.
    """

    system: str
    user: str
    assistant: str
    reply: str
    default_system: str
    start: str = ""
    default_spoken_system: str | None = None

    @classmethod
    def of(cls, template: Mapping[str, str]) -> TurnTemplate:
        """The template of a model card.

        Raises:
            EepolicyError: a key is missing or unknown, or a turn has not one `{content}`.
        """
        wrong = sorted({*template} - {*REQUIRED, *OPTIONAL})
        wrong = wrong or [key for key in REQUIRED if key not in template]
        wrong = wrong or [role for role in ROLES if template[role].count(CONTENT) != 1]
        if wrong:
            raise EepolicyError(
                f"a template of turns has {', '.join(REQUIRED)}, and those of {', '.join(ROLES)} "
                f"have {CONTENT} once; see {wrong[0]!r}"
            )
        return cls(**template)

    def render(self, messages: Sequence[Mapping[str, Any]], ends: Sequence[int]) -> list[Part]:
        """The parts of a conversation in their order, neighbouring texts joined.

        Args:
            messages: turns with `role` and `content`.
            ends: ids that end a reply, which are left out of earlier replies.

        Raises:
            EepolicyError: a turn has another role or content, or the last one is not the user's.
        """
        turns = [_turn(message) for message in messages]
        if turns[-1][0] != "user":
            raise EepolicyError(
                f"a conversation ends with a turn of the role 'user'; got {turns[-1][0]!r}"
            )
        if any(role == "system" for role, _ in turns[1:]):
            raise EepolicyError("a system prompt is the first turn of a conversation")
        if turns[0][0] != "system":
            is_spoken = any(isinstance(part, Sound) for part in turns[0][1])
            spoken = self.default_spoken_system
            default = spoken if is_spoken and spoken is not None else self.default_system
            turns.insert(0, ("system", [default]))
        parts: list[Part] = [self.start]
        for role, content in turns:
            before, after = getattr(self, role).split(CONTENT)
            if role == "assistant":
                content = [*content[:-1], *(_without_end(part, ends) for part in content[-1:])]
            parts += [before, *content, after]
        return _joined([*parts, self.reply])


def has_sound(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a turn of a conversation contains sound."""
    return any(
        isinstance(item, Mapping) and item.get("type") == "audio"
        for message in messages
        for item in _items(message.get("content"))
    )


def _items(content: Any) -> Sequence[Any]:
    """The parts of a content, which may be a single one."""
    return content if isinstance(content, (list, tuple)) else [content]


def _turn(message: Mapping[str, Any]) -> tuple[str, list[Part]]:
    """The role of a turn and the parts of its content."""
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        raise EepolicyError(f"the role of a turn is {', '.join(ROLES)}; got {role!r}")
    return role, [_part(role, item) for item in _items(content)]


def _part(role: str, item: object) -> Part:
    """A part of the content of a turn, which is text, ids, or a dict of its type."""
    kind: object = "text" if isinstance(item, str) else "tokens"
    value: Any = item
    if isinstance(item, Mapping):
        kind = item.get("type")
        value = item.get(kind) if isinstance(kind, str) else None
    if kind == "audio" and value is not None and role == "user":
        return Sound(value)
    if kind == "text" and isinstance(value, str):
        return value
    if kind == "tokens" and isinstance(value, Tensor) and value.ndim == 1 and is_ids(value):
        return value
    raise EepolicyError(
        f"the content of a turn of the role {role!r} is text, ids (tokens,), or a list of "
        "{'type': 'text', 'text': ...}, {'type': 'tokens', 'tokens': ids} and, of the user, "
        f"{{'type': 'audio', 'audio': file or waveform}}; got {item!r:.60}"
    )


def _without_end(part: Part, ends: Sequence[int]) -> Part:
    """Ids of an earlier reply without its end token."""
    if isinstance(part, Tensor) and len(part) and int(part[-1]) in ends:
        return part[:-1]
    return part


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The parts, with neighbouring texts joined: their tokens may span the borders."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(last, str):
            joined[-1] = last + part
        elif not isinstance(part, str) or part:
            joined.append(part)
    return joined
