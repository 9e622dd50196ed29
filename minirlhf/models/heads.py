"""A backbone and one linear layer: the reward model and the critic are both this; a critic may read the actor's own backbone."""

import copy
import json
import math
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from minirlhf.core.logprobs import response_slice
from minirlhf.core.rollout import Rollout
from minirlhf.models.adapters import fused_gelu, has_adapter, merged
from minirlhf.models.forward import policy_logprobs
from minirlhf.runtime import atomic_folder, check


def read_whole(auto, source: str | Path):
    """`auto.from_pretrained` in float32, without pickle; weights that are not there are an error, not random numbers."""
    model, found = auto.from_pretrained(
        source,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    wrong = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights that its config.json asks for are missing or of another shape, such as {wrong[0]}."
        )
    return model


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
            input_ids=sequences,
            attention_mask=attention_mask.long(),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        return self.scores(hidden)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, T, hidden) states of the backbone -> (B, T) scores."""
        return (self.head(hidden.to(self.head.weight.dtype)).squeeze(-1) - self.shift) / self.scale

    def save(self, folder: str | Path, tokenizer, *, dtype=torch.float16) -> None:
        """Write an ordinary transformers folder, in 16 bits: a sequence classifier of one label, and scalar.json with the rest.

        AutoModelForSequenceClassification opens it and gives w . h at the last token: our score but for b, shift and scale. No padding
        token is named in it: where EOS pads, transformers would take the EOS of a text for padding and read the word before it.
        """
        whole = AutoModelForSequenceClassification.from_config(self._config())
        whole.base_model.load_state_dict(merged(self.backbone).state_dict())
        with torch.no_grad():
            whole.score.weight.copy_(self.head.weight)
        numbers = {
            "bias": self.head.bias.item(),
            "shift": float(self.shift),
            "scale": float(self.scale),
        }
        with atomic_folder(folder) as temporary:
            whole.to(dtype).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            (temporary / "scalar.json").write_text(json.dumps(numbers))

    @classmethod
    def load(cls, folder: str | Path) -> "ScalarModel":
        """Read what `save` wrote, in float32, evaluation mode."""
        numbers = json.loads((Path(folder) / "scalar.json").read_text())
        if missing := {"bias", "shift", "scale"} - numbers.keys():
            raise ValueError(f"its scalar.json lacks {', '.join(sorted(missing))}.")
        whole = read_whole(AutoModelForSequenceClassification, folder)
        model = cls(fused_gelu(whole.base_model))
        with torch.no_grad():
            model.head.weight.copy_(whole.score.weight)
            model.head.bias.fill_(numbers["bias"])
        model.shift, model.scale = numbers["shift"], numbers["scale"]
        return model.eval()

    def _config(self):
        config = copy.deepcopy(self.backbone.config)
        config.num_labels, config.pad_token_id = 1, None
        return config


class SharedCritic(ScalarModel):
    """A value head on the actor's own trunk: no second backbone in memory, and one pass for both heads where both are needed.

    Its only parameters are the head's. So an optimiser of the critic steps the head alone, and the trunk, whose gradient is the sum of
    the policy loss's and the value loss's, is stepped once, by the actor's optimiser, at the actor's learning rate.

    Args:
        like: a reward model of the actor's width, whose head, shift and scale this one starts with; a new head by default.
    """

    def __init__(self, actor: nn.Module, like: ScalarModel | None = None):
        nn.Module.__init__(self)
        self._actor = (
            actor,
        )  # in a tuple torch does not see it: its weights are not this module's
        self.head, self.shift, self.scale = ScalarHead(actor.config.hidden_size), 0.0, 1.0
        if like is not None:
            check(
                "like.head",
                like.head.in_features,
                like.head.in_features == self.head.in_features,
                "as wide as the actor's trunk",
            )
            self.head.load_state_dict(like.head.state_dict())
            self.shift, self.scale = like.shift, like.scale

    @property
    def actor(self) -> nn.Module:
        return self._actor[0]

    @property
    def backbone(self) -> nn.Module:
        """The trunk, adapters included."""
        return (self.actor.get_base_model() if has_adapter(self.actor) else self.actor).base_model

    def logprobs_and_values(
        self, rollout: Rollout, *, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `policy_logprobs` of the actor and `response_values` of this critic give, both (B, R), from one pass through the trunk."""
        found = []
        with self.backbone.register_forward_hook(
            lambda trunk, given, output: found.append(output.last_hidden_state)
        ):
            logprobs = policy_logprobs(self.actor, rollout, temperature=temperature)
        return logprobs, response_slice(self.scores(found[0]), rollout.prompt_ids.shape[1])

    def save(self, folder: str | Path, tokenizer, *, dtype=torch.float16) -> None:
        """Write the trunk as it is now and the head, as a ScalarModel of its own."""
        alone = ScalarModel(merged(self.actor).base_model)
        alone.head, alone.shift, alone.scale = self.head, self.shift, self.scale
        alone.save(folder, tokenizer, dtype=dtype)
