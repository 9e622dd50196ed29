"""A reward model on disk: an ordinary transformers folder."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.models.adapters import with_lora
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_scalar
from tests.models.test_adapters import tiny_llama
from tests.tiny import tiny_policy, tiny_tokenizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_policy().base_model,
        lambda: tiny_llama().base_model,
        lambda: with_lora(tiny_policy().base_model, 4),
    ],
)
def test_a_saved_reward_model_gives_the_same_scores_in_transformers(make, tmp_path):
    torch.manual_seed(3)
    model = ScalarModel(make()).eval()
    model.shift, model.scale = 0.25, 2.0
    with torch.no_grad():
        model.head.bias.fill_(0.5)
    model.save(tmp_path / "reward", tiny_tokenizer(), dtype=torch.float32)
    batch = encode(tiny_tokenizer(), ["a"], ["good"])
    with torch.no_grad():
        ours = token_scores(model, batch)
        again = token_scores(load_scalar(tmp_path / "reward")[0], batch)
        theirs = (
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
            .eval()(batch.sequences)
            .logits
        )
        hidden = (
            AutoModel.from_pretrained(tmp_path / "reward").eval()(batch.sequences).last_hidden_state
        )
    torch.testing.assert_close(again, ours, rtol=0, atol=1e-6)
    torch.testing.assert_close((theirs[0, 0] + 0.5 - 0.25) / 2.0, ours[0, -1], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.head(hidden)[0, -1, 0], theirs[0, 0] + 0.5, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "reward" / "scalar.json").read_text()) == {
        "bias": 0.5,
        "shift": 0.25,
        "scale": 2.0,
    }


@pytest.mark.parametrize("make", [tiny_policy, tiny_llama])
def test_transformers_scores_a_padded_batch_as_we_do(make, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "~"  # any other token than EOS
    torch.manual_seed(3)
    ours = ScalarModel(make().base_model).eval()
    ours.save(tmp_path / "reward", tokenizer, dtype=torch.float32)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    assert theirs.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    prompts, responses = ["a", "a longer "], ["good", "b"]
    texts = [a + b + tokenizer.eos_token for a, b in zip(prompts, responses, strict=True)]
    padded = AutoTokenizer.from_pretrained(tmp_path / "reward")(
        texts, padding=True, return_tensors="pt", return_token_type_ids=False
    )
    assert not padded.attention_mask.all()
    batch = encode(tokenizer, prompts, responses)
    with torch.no_grad():
        expected = last_token_scores(token_scores(ours, batch), batch.attention_mask)
        found = theirs(**padded).logits[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    again = last_token_scores(
        token_scores(load_scalar(tmp_path / "reward")[0], batch), batch.attention_mask
    )
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)


def test_transformers_refuses_a_padded_batch_where_eos_is_the_padding_token(tmp_path):
    ScalarModel(tiny_policy().base_model).save(tmp_path / "reward", tiny_tokenizer())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match="pad"):  # it could not find the last token
        model(torch.zeros(2, 3, dtype=torch.long))
