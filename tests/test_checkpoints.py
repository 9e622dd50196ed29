"""The committed base models have the scores of their card, data/checkpoints/README.md."""

import math

import pytest
import torch

from minirlhf.loops.pretrain import pack, stream_nats
from minirlhf.models.load import load_policy
from minirlhf.tasks.reviews import load_reviews, pretraining_texts
from minirlhf.tasks.trigram import Trigram

CARD = {  # bits per byte of the 76 test films
    "tiny-reviews": 1.86,
    "tiny-reviews-3x192": 1.90,
    "tiny-reviews-2x64": 2.06,
    "trigram": 2.03,
}


@pytest.mark.notebook  # no training of a lesson, so CI runs it
def test_the_base_models_and_a_trigram_on_held_out_films():
    held = [review.text for review in load_reviews() if review.split == "test"]
    bits = math.log(2) * sum(len(text.encode()) + 1 for text in held)  # nats, for one bit a byte
    found = {}
    for name in CARD:
        if name != "trigram":
            model, tokenizer = load_policy(name)
            stream = pack(held, tokenizer, torch.Generator().manual_seed(0))
            found[name] = stream_nats(model, stream, model.config.n_positions) / bits
    seen = [[*ids, 0] for ids in tokenizer(pretraining_texts()).input_ids]
    trigram = Trigram(seen, len(tokenizer))
    found["trigram"] = sum(trigram.nats([*ids, 0]) for ids in tokenizer(held).input_ids) / bits
    assert found == pytest.approx(CARD, abs=0.01)
