"""Token sequences of the pocket model: its tokenizer, its ids, its chunk pattern.

    <q> question <a> T T T T u*16 T T T T u*16 ... T <eot> u u u ... <end>

Text runs ahead of speech; when it has ended with `<eot>`, units run on until `<end>`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from eepolicy.modality import TokenLayout

SPECIALS = ("<pad>", "<q>", "<a>", "<eot>", "<end>")
PAD, QUESTION, ANSWER, END_OF_TEXT, END = range(len(SPECIALS))
TEXT_WORDS = 1024  # specials included
UNITS = 4096
UNIT_OFFSET = TEXT_WORDS
VOCABULARY = TEXT_WORDS + UNITS
TEXT_CHUNK, SPEECH_CHUNK = 4, 16


def fit_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the texts, the units added behind it as `<|unit_0|>` and so on."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_WORDS,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if bpe.get_vocab_size() != TEXT_WORDS:
        raise ValueError(f"the texts gave {bpe.get_vocab_size()} text tokens, not {TEXT_WORDS}")
    bpe.add_special_tokens([f"<|unit_{i}|>" for i in range(UNITS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """The ids of a question, up to the place where the answer starts."""
    return [QUESTION, *tokenizer(question, add_special_tokens=False).input_ids, ANSWER]


def interleave(text: list[int], units: list[int]) -> list[int]:
    """Text ids and units in alternating chunks, closed by `<end>`.

    Args:
        text: ids of the answer's text, without `<eot>`.
        units: its speech units, from 0.
    """
    text, speech = [*text, END_OF_TEXT], [UNIT_OFFSET + u for u in units]
    ids: list[int] = []
    while text:
        ids += text[:TEXT_CHUNK]
        text = text[TEXT_CHUNK:]
        take = SPEECH_CHUNK if text else len(speech)
        ids += speech[:take]
        speech = speech[take:]
    return [*ids, END]


LAYOUT = TokenLayout(
    text=(0, TEXT_WORDS),
    speech=(UNIT_OFFSET, VOCABULARY),
    text_chunk=TEXT_CHUNK,
    speech_chunk=SPEECH_CHUNK,
    end_of_text=END_OF_TEXT,
    end=END,
    before_prompt=(QUESTION,),
    after_prompt=(ANSWER,),
)
