"""The verifier: its first loss, its values of prefixes, and a loss at every position."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.verifier import VerifierConfig, prefix_logits, train_verifier
from minirlhf.models.forward import encode
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import seed_all
from tests.tiny import tiny_policy, tiny_tokenizer

# A response is right if it holds an a. Of responses without an a so far, half are right.
ROWS = Dataset.from_list(
    [
        {"prompt": p, "completion": c, "label": "a" in c}
        for p in ("one", "2")
        for c in ("xyax", "xyxx", "xaxy", "xbxy", "yxya", "yxyb", "ayyx", "byyx")
    ]
)


def train(**given):
    torch.manual_seed(0)
    config = VerifierConfig(
        **{"steps": 150, "batch_size": 16, "optimiser": OptimiserConfig(lr=3e-3)} | given
    )
    return train_verifier(tiny_policy().base_model, tiny_tokenizer(), ROWS, config)


def test_the_verifier_learns_which_step_makes_a_response_right():
    model, history = train()
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=0.2) and history[-1]["loss"] < 0.5
    assert history[-1]["right"] == 1
    batch = encode(tiny_tokenizer(), ["one"] * 2, ["xyax", "xyxx"])
    with torch.no_grad():
        logits, mask = prefix_logits(model, batch)
    values = logits.sigmoid()
    assert mask.sum(1).tolist() == [6, 6] and logits.shape == (
        2,
        6,
    )  # the prompt's end, four letters, EOS
    assert (values[0, :3] - 0.5).abs().max() < 0.25  # before the a: about one half
    assert values[0, 3] > 0.9 and values[1, 3] < 0.1  # after the third letter the outcome is known


def test_padding_is_not_in_the_loss_and_settings_are_checked():
    rows = {
        "prompt": ["one", "a longer prompt"],
        "completion": ["xyaxxxx", "b"],
        "label": [True, False],
    }
    torch.manual_seed(0)
    backbone, config = tiny_policy().base_model, VerifierConfig(steps=1, batch_size=2)
    before = copy.deepcopy(backbone)
    history = train_verifier(backbone, tiny_tokenizer(), Dataset.from_dict(rows), config)[1]
    seed_all(config.seed)
    model = ScalarModel(before).eval()
    with torch.no_grad():
        logits, mask = prefix_logits(
            model, encode(tiny_tokenizer(), rows["prompt"], rows["completion"])
        )
    assert mask.sum(1).tolist() == [9, 3]  # the prompt's end, the letters, EOS
    losses = torch.cat([-logsigmoid(logits[0, :9]), -logsigmoid(-logits[1, :3])])
    assert history[0]["loss"] == pytest.approx(losses.mean().item(), abs=1e-6)
    for given, words in (({"steps": 0}, "steps is 0"), ({"batch_size": 0}, "batch_size is 0")):
        with pytest.raises(ValueError, match=words):
            VerifierConfig(**given)
