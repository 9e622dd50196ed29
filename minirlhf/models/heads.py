"""A backbone and one linear layer: the reward model and the critic are both this."""

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel

from minirlhf.runtime import atomic_folder


class ScalarHead(nn.Linear):
    """nn.Linear(hidden, 1): the language-model head replaced by one number a token. Weights start with std 1 / sqrt(hidden + 1)."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1)
        nn.init.normal_(self.weight, std=1 / math.sqrt(hidden_size + 1))
        nn.init.zeros_(self.bias)


class ScalarModel(nn.Module):
    """Backbone + ScalarHead: a score in reward units at every position of a sequence.

        s_t = (w . h_t + b - shift) / scale

    `shift` and `scale` (reward units) are the raw score's mean and standard deviation on samples of the SFT model: a
    Bradley-Terry score has no offset and no unit of its own, and kl_coef would mean nothing. A critic made from it keeps them.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = ScalarHead(backbone.config.hidden_size)
        self.shift, self.scale = 0.0, 1.0

    def forward(self, sequences, attention_mask, position_ids) -> torch.Tensor:
        """(B, T) ids -> (B, T) scores; column t reads the text up to and including token t."""
        hidden = self.backbone(
            input_ids=sequences, attention_mask=attention_mask.long(), position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return (self.head(hidden).squeeze(-1) - self.shift) / self.scale

    def save(self, folder: str | Path, tokenizer, *, dtype=torch.float16) -> None:
        """Write weights in 16 bits, the backbone's configuration, the normalisation and the tokenizer."""
        with atomic_folder(folder) as temporary:
            self.backbone.config.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            numbers = {"shift": float(self.shift), "scale": float(self.scale)}
            (temporary / "scalar.json").write_text(json.dumps(numbers))
            save_file({k: v.to(dtype).contiguous() for k, v in self.state_dict().items()}, temporary / "scalar.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> "ScalarModel":
        """Read what `save` wrote, in float32, evaluation mode."""
        folder = Path(folder)
        model = cls(AutoModel.from_config(AutoConfig.from_pretrained(folder)))
        with safe_open(folder / "scalar.safetensors", "pt") as file:
            model.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})
        numbers = json.loads((folder / "scalar.json").read_text())
        model.shift, model.scale = numbers["shift"], numbers["scale"]
        return model.eval()
