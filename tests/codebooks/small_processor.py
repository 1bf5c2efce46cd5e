"""A processor of a small CSM, with the marks around texts that the authors' tokenizer adds."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import CsmProcessor, EncodecFeatureExtractor, PreTrainedTokenizerFast


def small_processor() -> CsmProcessor:
    """A processor with ten words."""
    words = [
        "hello",
        "you",
        "[",
        "0",
        "]",
        "<|AUDIO|>",
        "<|audio_eos|>",
        "<begin>",
        "<end>",
        "<pad>",
    ]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    marks = [(mark, words.index(mark)) for mark in ("<begin>", "<end>")]
    tokenizer.post_processor = TemplateProcessing("<begin> $A <end>", special_tokens=marks)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    return CsmProcessor(EncodecFeatureExtractor(sampling_rate=8000), fast)
