"""Reward model and critic: a backbone with one linear layer that gives a number per token.

A critic may have a backbone of its own or read the actor's (`SharedCritic`).
"""

import copy
import json
import math
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from minirlhf.core.checks import LARGEST, SMALLEST
from minirlhf.core.logprobs import response_slice
from minirlhf.core.rollout import Rollout
from minirlhf.models.adapters import Policy, fused_gelu, has_adapter, merged
from minirlhf.models.chat import write_note
from minirlhf.models.folders import read_whole
from minirlhf.models.forward import device_of, policy_logprobs
from minirlhf.models.weight_files import read_table
from minirlhf.runtime import check, save_folder


def _config_of(model: nn.Module) -> PreTrainedConfig:
    return model.config  # type: ignore[return-value]  # torch declares: Tensor or Module


def _width(backbone: nn.Module) -> int:
    """The width of a backbone's last hidden states. OPT projects them to another width."""
    config = _config_of(backbone)
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def check_savable(model: nn.Module) -> None:
    """Check that transformers has a sequence classifier of a model's family, to save a ScalarModel.

    Call it before training, so that no work is lost.

    Raises:
        ValueError: it has none.
    """
    config = _config_of(model)
    check(
        "model",
        config.model_type,
        type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "of a type that transformers has a sequence classifier for, such as gpt2, llama or qwen2: "
        "a reward model is saved as one",
    )


class ScalarHead(nn.Linear):
    """A linear layer that gives one number per token, in place of the language-model head.

    The weights start with mean 0 and standard deviation 1 / sqrt(hidden_size + 1), the bias with 0.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, device="cpu")  # drawn there, wherever the model is
        nn.init.normal_(self.weight, std=1 / math.sqrt(hidden_size + 1))
        nn.init.zeros_(self.bias)


class ScalarModel(nn.Module):
    """Backbone and ScalarHead: a score in reward units at every position of a sequence.

        s_t = (w . h_t + b - shift) / scale

    `shift` and `scale` are the mean and the standard deviation of the raw score on samples of the
    SFT model. A Bradley-Terry score has no offset and no unit of its own; without this
    normalisation kl_coef would have no fixed meaning. A critic made from a reward model keeps both
    numbers.

    Args:
        backbone: a transformers model without a language-model head.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ScalarHead(_width(backbone)).to(device_of(backbone))
        self.shift, self.scale = 0.0, 1.0

    def forward(
        self, sequences: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Token ids (B, T) -> scores (B, T). Column t reads the tokens up to and including t."""
        hidden = self.backbone(
            input_ids=sequences,
            attention_mask=attention_mask.long(),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        return self.scores(hidden)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, T, hidden) of the backbone -> scores (B, T)."""
        return (self.head(hidden.to(self.head.weight.dtype)).squeeze(-1) - self.shift) / self.scale

    def save(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype = torch.float16,
        chat: bool = False,
    ) -> None:
        """Write an ordinary transformers folder: a sequence classifier with one label.

        `bias`, `shift` and `scale` go to scalar.json. AutoModelForSequenceClassification opens the
        folder and gives w . h at the last token: our score without bias, shift and scale. The saved
        tokenizer pads on the right, as sequence classifiers do. The saved config names its padding
        token, unless that is EOS: transformers would then take the EOS of a sequence for padding
        and read the token before it. Without a padding token it refuses a batch of several texts.

        Args:
            dtype: of the saved weights, 16 bits by default; `load` reads them as float32.
            chat: the model learned from texts that the tokenizer's chat template wrote. The folder
                says so, and `trained_with_chat` reads it.

        Raises:
            ValueError: the folder holds files that do not belong to a model, or is in use.
            Kept: it cannot be written; the model is in the folder that the message names.
        """
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "right"
        with torch.device("cpu"):
            whole = AutoModelForSequenceClassification.from_config(self._config(tokenizer))
        whole.base_model.load_state_dict(merged(self.backbone).state_dict())
        with torch.no_grad():
            whole.score.weight.copy_(self.head.weight)
        numbers = {
            "bias": self.head.bias.item(),
            "shift": float(self.shift),
            "scale": float(self.scale),
        }

        def write(place: Path) -> None:
            whole.to(dtype).save_pretrained(place)
            tokenizer.save_pretrained(place)
            (place / "scalar.json").write_text(json.dumps(numbers))
            write_note(place, chat=chat)

        save_folder(folder, write)

    @classmethod
    def load(cls, folder: str | Path) -> "ScalarModel":
        """Read what `save` wrote, in float32 and evaluation mode.

        Raises:
            ValueError: scalar.json or the weights are not what `save` writes.
        """
        numbers = _read_numbers(Path(folder) / "scalar.json")
        whole = read_whole(AutoModelForSequenceClassification, Path(folder))
        outputs = len(whole.get_parameter("score.weight"))
        if outputs != 1:
            raise ValueError(f"its head gives {outputs} numbers per token; it must give 1.")
        if not whole.get_parameter("score.weight").any():
            raise ValueError("its head holds zeros alone, so all scores would be equal.")
        model = cls(fused_gelu(whole.base_model))
        with torch.no_grad():
            model.head.weight.copy_(whole.get_parameter("score.weight"))
            model.head.bias.fill_(numbers["bias"])
        model.shift, model.scale = numbers["shift"], numbers["scale"]
        return model.eval()

    def _config(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
        config, pad = copy.deepcopy(_config_of(self.backbone)), tokenizer.pad_token_id
        config.num_labels = 1
        config.pad_token_id = None if pad == tokenizer.eos_token_id else pad
        return config


def _read_numbers(file: Path) -> dict[str, float]:
    """`bias`, `shift` and `scale` from scalar.json.

    Raises:
        ValueError: one is missing, is no number or beyond 1e30, scale is below 1e-30, or there is
            another entry.
    """
    numbers = read_table(file)
    names = {"bias", "shift", "scale"}
    if missing := names - numbers.keys():
        raise ValueError(f"its scalar.json lacks {', '.join(sorted(missing))}.")
    if unknown := numbers.keys() - names:
        raise ValueError(
            f"its scalar.json also names {', '.join(sorted(unknown))}; it must hold bias, shift "
            "and scale alone."
        )
    for name, value in numbers.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        low = SMALLEST if name == "scale" else -LARGEST
        fits = number and low <= value <= LARGEST
        allowed = f"a number from {low:g} to {LARGEST:g}"
        check(f"{name} in its scalar.json", value, fits, allowed)
    return numbers


class SharedCritic(ScalarModel):
    """A value head on the actor's own backbone (a shared trunk).

    No second backbone is in memory, and one forward pass serves both heads where both are needed.

    Its only parameters are those of the head, so an optimiser of the critic updates the head alone.
    The gradient of the backbone is the sum of the policy loss's and the value loss's gradients. The
    actor's optimiser updates the backbone once, at the actor's learning rate.

    Args:
        actor: the policy.
        like: a reward model as wide as the actor. The head, shift and scale are copied from it. By
            default the head is new.

    Raises:
        ValueError: `like` has another width than the actor.
    """

    def __init__(self, actor: Policy, like: ScalarModel | None = None) -> None:
        nn.Module.__init__(self)
        # torch does not look into tuples: the actor's weights are not parameters of this module
        self._actor = (actor,)
        self.head = ScalarHead(_width(actor)).to(device_of(actor))
        self.shift, self.scale = 0.0, 1.0
        if like is not None:
            check(
                "like.head",
                like.head.in_features,
                like.head.in_features == self.head.in_features,
                f"as wide as the actor's backbone, {self.head.in_features}",
            )
            self.head.load_state_dict(like.head.state_dict())
            self.shift, self.scale = like.shift, like.scale

    @property
    def actor(self) -> Policy:
        """The policy whose backbone this critic reads."""
        return self._actor[0]

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]  # the actor's, so it is not assigned
        """The actor's backbone, adapters included."""
        # torch declares that an attribute of a module is a Tensor or a Module
        whole = self.actor.get_base_model() if has_adapter(self.actor) else self.actor  # type: ignore[operator]
        return whole.base_model  # type: ignore[return-value]

    def logprobs_and_values(
        self, rollout: Rollout, *, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`policy_logprobs` of the actor and `response_values` of this critic, from one pass.

        Returns:
            Log-probabilities (B, R) in nats and values (B, R) in reward units.
        """
        found = []
        with self.backbone.register_forward_hook(
            lambda trunk, given, output: found.append(output.last_hidden_state)
        ):
            logprobs = policy_logprobs(self.actor, rollout, temperature=temperature)
        values = response_slice(self.scores(found[0]), rollout.prompt_ids.shape[1])
        return logprobs, values.to(rollout.device)

    def save(
        self,
        folder: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype = torch.float16,
        chat: bool = False,
    ) -> None:
        """Write the backbone as it is now and the head, as an ordinary ScalarModel."""
        alone = ScalarModel(merged(self.actor).base_model)
        alone.head, alone.shift, alone.scale = self.head, self.shift, self.scale
        alone.save(folder, tokenizer, dtype=dtype, chat=chat)
