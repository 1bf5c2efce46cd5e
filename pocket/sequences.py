"""Token sequences of the pocket model: tokenizer, ids and chunk pattern.

    <q> question <a> T T T T u*16 T T T T u*16 ... T <eot> u u u ... <end>

Text is ahead of speech.  It ends with `<eot>`; only units follow until `<end>`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from eepolicy.modality import TokenLayout

SPECIALS = ("<pad>", "<q>", "<a>", "<eot>", "<end>")
PAD, QUESTION, ANSWER, END_OF_TEXT, END = range(len(SPECIALS))
TEXT_TOKENS = 1024  # with special tokens
UNITS = 4096
UNIT_OFFSET = TEXT_TOKENS
VOCABULARY = TEXT_TOKENS + UNITS
TEXT_CHUNK, SPEECH_CHUNK = 4, 16


def fit_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE on texts, and add the units after it as `<|unit_0|>` and so on."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if bpe.get_vocab_size() != TEXT_TOKENS:
        raise ValueError(
            f"expected {TEXT_TOKENS} text tokens; the texts gave {bpe.get_vocab_size()}"
        )
    bpe.add_special_tokens([f"<|unit_{i}|>" for i in range(UNITS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """Return the ids of a question, up to the start of the answer."""
    return [QUESTION, *tokenizer(question, add_special_tokens=False).input_ids, ANSWER]


def interleave(text: list[int], units: list[int]) -> list[int]:
    """Interleave text ids and units in chunks, and add `<end>`.

    Args:
        text: text ids of the answer, without `<eot>`.
        units: speech units of the answer, from 0.

    Returns:
        Token ids.
    """
    text, speech = [*text, END_OF_TEXT], [UNIT_OFFSET + u for u in units]
    ids: list[int] = []
    while text:
        ids += text[:TEXT_CHUNK]
        text = text[TEXT_CHUNK:]
        size = SPEECH_CHUNK if text else len(speech)
        ids += speech[:size]
        speech = speech[size:]
    return [*ids, END]


LAYOUT = TokenLayout(
    text=(0, TEXT_TOKENS),
    speech=(UNIT_OFFSET, VOCABULARY),
    text_chunk=TEXT_CHUNK,
    speech_chunk=SPEECH_CHUNK,
    end_of_text=END_OF_TEXT,
    end=END,
    before_prompt=(QUESTION,),
    after_prompt=(ANSWER,),
)
