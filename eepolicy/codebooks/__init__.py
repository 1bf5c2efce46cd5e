"""Early exit with several codebooks: a position is a frame of several codes.

The stock model has two decoders.  The backbone gives the first code of a frame, and the depth
decoder gives the others one by one.  Exit policies act on the layers of both, and a codebook policy
on the number of codes of a frame.
"""

from eepolicy.codebooks import csm  # noqa: F401  (registers the adapter)
from eepolicy.codebooks.adapter import CODEBOOK_FAMILIES, LEFT_OUT, CodebookAdapter
from eepolicy.codebooks.config import CodebookConfig
from eepolicy.codebooks.missing import (
    MISSING_CODES,
    FixedCode,
    LeaveOut,
    MissingCodes,
    PreviousFrame,
    parse_missing,
)
from eepolicy.codebooks.model import HookedCodebookModel
from eepolicy.codebooks.output import CodebookOutput
from eepolicy.codebooks.policies import (
    CODEBOOK_POLICIES,
    AllCodebooks,
    CodebookPolicy,
    CodeConfidence,
    CodeEntropy,
    FirstCodebooks,
    FrameStep,
    parse_codebooks,
)
from eepolicy.codebooks.prompt import FramePrompt
from eepolicy.codebooks.qwen3_omni import talker_inputs
from eepolicy.codebooks.trace import CodebookCosts, CodebookTrace
from eepolicy.codebooks.vocoder import Code2WavVocoder, CodebookVocoder, MimiVocoder

__all__ = [
    "CODEBOOK_FAMILIES",
    "CODEBOOK_POLICIES",
    "LEFT_OUT",
    "MISSING_CODES",
    "AllCodebooks",
    "Code2WavVocoder",
    "CodeConfidence",
    "CodeEntropy",
    "CodebookAdapter",
    "CodebookConfig",
    "CodebookCosts",
    "CodebookOutput",
    "CodebookPolicy",
    "CodebookTrace",
    "CodebookVocoder",
    "FirstCodebooks",
    "FixedCode",
    "FramePrompt",
    "FrameStep",
    "HookedCodebookModel",
    "LeaveOut",
    "MimiVocoder",
    "MissingCodes",
    "PreviousFrame",
    "parse_codebooks",
    "parse_missing",
    "talker_inputs",
]
