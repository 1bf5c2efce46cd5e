"""What a hooked model has in common with a stock model of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


class PretrainedHabits:
    """Attributes and methods that users of `PreTrainedModel` expect.

    Attributes:
        model: the stock model.
    """

    model: PreTrainedModel

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> Any:
        """Load a model; the same as `eepolicy.load`.

        Args:
            name: `"pocket"`, a folder, or an id on the Hugging Face Hub.
            **options: options of `eepolicy.load`.

        Raises:
            EepolicyError: see `eepolicy.load`.
        """
        from eepolicy.loading import load

        return load(name, **options)

    def save_pretrained(self: Any, folder: str | Path) -> None:
        """Write the model, its tokenizer, its heads and what it speaks with; `load` reads it.

        Args:
            folder: a new or empty folder.

        Raises:
            EepolicyError: the folder is not empty, or heads or vocoder cannot be saved.
        """
        from eepolicy.loading.save import save_pretrained

        save_pretrained(self, folder)

    def push_to_hub(self: Any, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub.

        Args:
            repo_id: repository, which is created if it does not exist.
            **options: `private` and `token`.

        Returns:
            Address of the commit.

        Raises:
            EepolicyError: the model cannot be saved, or the upload fails.
        """
        from eepolicy.loading.save import push_to_hub

        return push_to_hub(self, repo_id, **options)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def config(self) -> PreTrainedConfig:
        """Config of the stock model."""
        return self.model.config

    @property
    def generation_config(self) -> GenerationConfig:
        """Defaults of `generate`, those of the stock model."""
        config: GenerationConfig = self.model.generation_config
        return config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of the stock model, at full depth."""
        return self.model(*args, **kwargs)
