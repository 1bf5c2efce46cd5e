"""A language model as judge, behind any endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eepolicy.errors import EepolicyError

#: asked where the right answer is known: the verdict is the first word
RIGHT = """A voice assistant was asked a question. Decide whether its answer is right.

Question: {question}
Right answers, any of which will do: {answers}
Its answer, {how}: {reply}

Spelling that speech recognition may have got wrong does not matter. Reply with one word, yes or \
no."""
#: asked where there is none: the verdict is a number from 1 to 10
RATED = """A voice assistant was given an instruction. Rate its answer from 1 (useless) to 10 \
(excellent) for help, relevance, accuracy and depth.

Instruction: {question}
Its answer, {how}: {reply}

Reply with the number alone."""
#: tries before a judge is given up, and seconds between the first two; each pause is twice the last
TRIES, PAUSE = 4, 1.0


@dataclass(frozen=True)
class LlmJudge:
    """Judges transcripts: right or wrong where the answer is known, else a rating.

    Attributes:
        url: of the endpoint, up to and with `/v1`.
        model: that judges.
        key: sent as a bearer token where one is given.
        timeout: seconds to wait for a verdict.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 60.0

    def __repr__(self) -> str:
        return f"LlmJudge({self.url!r}, {self.model!r})"  # the key is nobody's business

    def judge(self, question: Mapping[str, Any], reply: str, heard: bool = True) -> float | None:
        """The verdict on a reply: 0 or 1 for wrong and right, or a rating from 0.1 to 1.

        None where the judge gives none, so that one odd word does not stop a run.

        Args:
            question: dict with `question` and `keys`.
            reply: its transcript, or its text.
            heard: it is a transcript.

        Raises:
            EepolicyError: the endpoint does not answer.
        """
        if not reply.strip():
            return 0.0 if question.get("keys") else 0.1
        keys = question.get("keys")
        answers = "; ".join(k if isinstance(k, str) else " / ".join(k) for k in keys or ())
        form = RIGHT if keys else RATED
        how = "as heard by speech recognition" if heard else "in writing"
        said = self._ask(
            form.format(question=question["question"], answers=answers, reply=reply, how=how)
        )
        pattern = r"\b(yes|no)\b" if keys else r"\b(10|[1-9])\b"
        # what it begins with, or else what it comes to in the end
        first = re.match(r"\W*" + pattern, said.lower())
        verdicts = [first[1]] if first else re.findall(pattern, said.lower())
        if not verdicts:
            return None
        return float(verdicts[-1] == "yes") if keys else int(verdicts[-1]) / 10

    def _ask(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        for attempt in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return str(json.load(response)["choices"][0]["message"]["content"])
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code in (
                    400,
                    401,
                    403,
                    404,
                )
                if refused or attempt == TRIES - 1:
                    raise EepolicyError(
                        f"the judge at {address} does not answer: {error}"
                    ) from error
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError
