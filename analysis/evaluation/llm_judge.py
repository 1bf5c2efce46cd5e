"""A language model as judge, over any endpoint with OpenAI's chat completions protocol."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eepolicy.analysis.evaluation.judge_scores import read_rating, read_verdict
from eepolicy.analysis.evaluation.records import Record
from eepolicy.errors import EepolicyError

#: prompt for a question with a right answer; the judge answers yes or no
ACCURACY_PROMPT = """A voice assistant was asked a question. Decide whether its answer is right.

Question: {question}
The right answer, of which every part between semicolons is needed; of alternatives between \
slashes, one is enough: {answers}
Its answer, {source}: {reply}

Spelling that speech recognition may have got wrong does not matter. End your reply with your \
verdict in double square brackets: [[yes]] or [[no]]."""
#: prompt for a question without a right answer; the judge answers a number from 1 to 10
RATING_PROMPT = """A voice assistant was given an instruction. Rate its answer from 1 (useless) to \
10 (excellent) for help, relevance, accuracy and depth.

Instruction: {question}
Its answer, {source}: {reply}

End your reply with the rating in double square brackets, for example: [[5]]"""
#: number of requests before an endpoint is given up
TRIES = 4
#: seconds between the first two requests; each later pause is twice as long
PAUSE = 1.0
#: HTTP status codes after which a request is not repeated
FINAL_STATUS = (400, 401, 403, 404)


@dataclass(frozen=True)
class LlmJudge:
    """Scores replies: right or wrong if the right answer is known, otherwise a rating.

    Attributes:
        url: address of the endpoint up to and including `/v1`.
        model: name of the judge model.
        key: bearer token of the endpoint; None to send none.
        timeout: seconds to wait for a response.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 60.0

    def __repr__(self) -> str:
        return f"LlmJudge({self.url!r}, {self.model!r})"  # without the secret key

    def judge(
        self, question: Mapping[str, Any], reply: str, is_transcript: bool = True
    ) -> float | None:
        """Score a reply.

        Args:
            question: dict with `question` and `keys`.
            reply: transcript or text of the reply.
            is_transcript: whether `reply` is a transcript; the judge's prompt says so.

        Returns:
            0 or 1 for wrong or right, or a rating from 0.1 to 1.  None if the response contains
            no score, so that one unusual response does not stop a run; `unscored` counts these.

        Raises:
            EepolicyError: the endpoint does not answer.
        """
        keys = question.get("keys")
        if not reply.strip():
            return 0.0 if keys else 0.1
        answers = "; ".join(k if isinstance(k, str) else " / ".join(k) for k in keys or ())
        prompt = (ACCURACY_PROMPT if keys else RATING_PROMPT).format(
            question=question["question"],
            answers=answers,
            reply=reply,
            source="as heard by speech recognition" if is_transcript else "in writing",
        )
        response = self._request(prompt)
        return read_verdict(response) if keys else read_rating(response)

    def _request(self, prompt: str) -> str:
        """Send a prompt and return the response's text; repeat requests that fail."""
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
                status = error.code if isinstance(error, urllib.error.HTTPError) else None
                is_final = status in FINAL_STATUS
                if is_final or attempt == TRIES - 1:
                    raise EepolicyError(
                        f"the judge at {address} does not answer: {error}"
                    ) from error
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError


def unscored(records: Iterable[Record]) -> int:
    """Count the replies to which the judge gave no score.

    Args:
        records: records of a comparison with a judge.
    """
    return sum(record.judge_score is None for record in records)


def unscored_note(records: Iterable[Record]) -> str | None:
    """Say how many replies of each policy have no score, and so count in no mean.

    Args:
        records: records of a comparison with a judge.

    Returns:
        A sentence, or None if each reply has a score.

    Examples:
        >>> unscored_note([]) is None
        True
    """
    records = list(records)
    if not unscored(records):
        return None
    missing = Counter(record.policy for record in records if record.judge_score is None)
    listed = ", ".join(f"{policy} {count}" for policy, count in missing.items())
    return (
        f"The judge gave no score to {unscored(records)} of {len(records)} replies, which the mean "
        f"leaves out: {listed}."
    )
