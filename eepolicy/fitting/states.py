"""Hidden states of replies on disk, which rounds of fitting stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eepolicy.fitting.state_batch import StateBatch
from eepolicy.hooked import HookedModel
from eepolicy.io import make_folder, remove_unfinished, write_atomically
from eepolicy.modality import Modality
from eepolicy.probing import Document


@dataclass(frozen=True)
class StateStore:
    """A folder with a file of states for each batch of replies.

    Attributes:
        folder: the folder.
        depth: number of layers after which states are kept.  For 0, a drafter, the token ids and
            the states after the last layer are kept.
        on: modality of the positions to fit on, `text`, `speech` or `both`.
        whole: whether the states of all positions are kept, as branches need.
        dtype: type of the stored states.
    """

    folder: Path
    depth: int
    on: str
    whole: bool
    dtype: torch.dtype = torch.bfloat16

    @property
    def files(self) -> list[Path]:
        """The files, shortest replies first."""
        return sorted(self.folder.glob("*.safetensors"))

    def write(
        self,
        model: HookedModel,
        replies: Sequence[Document],
        batch: int,
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> None:
        """Run the model once over replies; batches that have a file are skipped.

        Args:
            model: the model.
            replies: prompts with their replies.
            batch: number of replies in a file.
            progress: wraps the batches, to show progress.
        """
        make_folder(self.folder)
        remove_unfinished(self.folder, "")  # of a process that was killed: it is large
        replies = sorted(replies, key=lambda reply: len(reply.tokens))
        files = {
            start: self.folder / f"{start // batch:06d}.safetensors"
            for start in range(0, len(replies), batch)
        }
        for start in progress([start for start, file in files.items() if not file.exists()]):
            tensors = self._states(model, replies[start : start + batch])
            write_atomically(files[start], lambda part, t=tensors: save_file(t, part))  # type: ignore[misc]

    def read(self, file: Path, device: torch.device, dtype: torch.dtype) -> StateBatch:
        """Read a file; the states get the type `dtype`."""
        tensors = load_file(file)
        moved = {
            name: t.to(device, dtype if t.is_floating_point() else t.dtype)
            for name, t in tensors.items()
        }
        if self.depth == 0:
            moved["last"] = moved["states"][moved["chosen"]]
        return StateBatch(**moved)

    @torch.no_grad()
    def _states(self, model: HookedModel, replies: Sequence[Document]) -> dict[str, Tensor]:
        ids = pad_sequence([reply.tokens for reply in replies], batch_first=True)
        chosen = torch.zeros(ids.shape, dtype=torch.bool)
        within = torch.zeros(ids.shape, dtype=torch.bool)
        for row, reply in enumerate(replies):
            within[row, : len(reply.tokens)] = True
            chosen[row, slice(*reply.span)] = self._chosen(model, reply)
        kept = within if self.whole else chosen
        where = self.depth or model.depth
        for depth, hidden in enumerate(model.hidden_states(ids.to(model.device)), start=1):
            if depth == where:
                states = hidden[kept.to(hidden.device)]
        tensors = {
            "states": states.to("cpu", self.dtype).contiguous(),
            "chosen": chosen[within],
            "lengths": within.sum(1),
        }
        if self.depth == 0:
            return {**tensors, "ids": ids[within].int()}
        last = hidden[chosen.to(hidden.device)].to("cpu", self.dtype).contiguous()
        return {**tensors, "last": last}

    def _chosen(self, model: HookedModel, reply: Document) -> Tensor:
        """Which positions of a reply to fit on: (readouts,) of bool."""
        start, end = reply.span
        if self.on == "both":
            return torch.ones(end - start, dtype=torch.bool)
        labels = reply.labels(model.layout, model.depth)
        return torch.from_numpy(labels[3] == Modality[self.on.upper()])
