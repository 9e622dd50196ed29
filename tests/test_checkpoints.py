"""The committed weights have the scores of the model card."""

import math

import pytest

from minirlhf.loops.pretrain import pack, stream_nats
from minirlhf.models.load import load_policy
from minirlhf.tasks.reviews import load_reviews, pretraining_texts
from minirlhf.tasks.trigram import Trigram


@pytest.mark.slow
def test_tiny_reviews_beats_a_trigram_on_held_out_films():
    import torch

    model, tokenizer = load_policy("tiny-reviews")
    held = [r.text for r in load_reviews() if r.split == "test"]
    count = sum(len(text.encode()) + 1 for text in held)
    stream = pack(held, tokenizer, torch.Generator().manual_seed(0))
    ours = stream_nats(model, stream, model.config.n_positions) / math.log(2) / count
    trigram = Trigram(
        [[*ids, 0] for ids in tokenizer(pretraining_texts()).input_ids], len(tokenizer)
    )
    theirs = sum(trigram.nats([*ids, 0]) for ids in tokenizer(held).input_ids) / math.log(2) / count
    assert ours < theirs
    assert abs(ours - CARD["tiny-reviews"]) < 0.01 and abs(theirs - CARD["trigram"]) < 0.01


CARD = {"tiny-reviews": 1.86, "trigram": 2.03}  # bits per byte, as in data/checkpoints/README.md
