"""Planted bugs: what the recorded runs of lesson 09's atlas have in the place of the package's own functions."""

from dataclasses import replace
from unittest.mock import patch

from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.forward import encode, response_values
from minirlhf.models.load import load_policy
from minirlhf.rewards.model import rollout_score
from minirlhf.tasks import reviews


def _sft_without_eos(name: str):
    """The SFT model as a mask `ids != pad` would have made it, padding being EOS: it never learned to stop."""

    def encode_without_eos(tokenizer, *texts, **limits):
        batch = encode(tokenizer, *texts, **limits)
        return replace(
            batch,
            response_mask=batch.response_mask & (batch.response_ids != tokenizer.eos_token_id),
        )

    base, tokenizer = load_policy("tiny-reviews")
    with patch("minirlhf.loops.sft.encode", encode_without_eos):
        model, _ = train_sft(
            base.requires_grad_(True), tokenizer, reviews.sft_dataset(tokenizer), SFTConfig()
        )
    return model.requires_grad_(False), tokenizer


FAULTS = {  # what is replaced in the atlas, by name; settings alone make the others
    "dead critic": {
        "loops.ppo.response_values": lambda critic, rollout: 0 * response_values(critic, rollout)
    },
    "KL sign wrong": {
        "loops.ppo.kl_shaped_rewards": lambda scores, old, ref, mask, **k: kl_shaped_rewards(
            scores, ref, old, mask, **k
        )
    },
    "reward scale wrong": {
        "experiments.runs.rollout_score": lambda *model: (
            lambda rollout: 20 * rollout_score(*model)(rollout)
        )
    },
    "EOS never trained": {"experiments.runs.load_policy": _sft_without_eos},
    "whitening at the optimum": {
        "experiments.runs.rollout_score": lambda *model: (
            lambda rollout: 0 * rollout_score(*model)(rollout) + 1
        )
    },
}
