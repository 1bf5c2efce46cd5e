"""Compiled layers of a model with several codebooks."""

from __future__ import annotations

from dataclasses import dataclass

from eepolicy.codebooks.executor import CodebookExecutor
from eepolicy.compile.cuda_graphs import executor_for
from eepolicy.compile.executor import CompiledExecutor
from eepolicy.decode.recorder import Recorder
from eepolicy.model.backbone import Backbone
from eepolicy.model.executor import LayerExecutor


@dataclass(frozen=True, eq=False)
class FrameRuntime:
    """The executors of both models, and the recorder of the backbone.

    Attributes:
        backbone: runs the layers of the backbone.
        depth_decoder: runs the layers of the depth decoder, and reads its codebooks out.
        recorder: records hidden states of the backbone; None for none.
    """

    backbone: LayerExecutor
    depth_decoder: CodebookExecutor
    recorder: Recorder | None = None


class CompiledLayers:
    """Makes the compiled executor of a backbone at its first use.

    Args:
        backbone: backbone or depth decoder.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._executor: CompiledExecutor | None = None

    def executor(self, compile: bool) -> LayerExecutor:
        """The executor of compiled layers, or the backbone itself with its stock layers.

        Args:
            compile: whether to compile the layers, if that is possible.
        """
        if not compile:
            return self.backbone
        if self._executor is None:
            self._executor = executor_for(self.backbone)
        return self._executor if self._executor.check() else self.backbone

    def clear(self) -> None:
        """Forget the executor, as the model has moved to another device."""
        self._executor = None
