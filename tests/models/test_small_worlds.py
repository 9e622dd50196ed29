"""Models that read few tokens or know few words, and what generation_config.json may say."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.models.fit import end_ids
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.model import prefix_scores
from tests.models.test_folders import refused, saved, with_generation
from tests.tiny import tiny_policy, tiny_tokenizer


def two_words(**special):
    """A model and a tokenizer of two words: "end" and "hi"."""
    words = Tokenizer(models.WordLevel({"end": 0, "hi": 1}, unk_token="end"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=2, n_embd=8, n_layer=1, n_head=2, n_positions=32, eos_token_id=0, bos_token_id=0
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end", **special)
    return transformers.GPT2LMHeadModel(config).eval(), tokenizer


def said(*words):
    """What a command answers: its output, or the sentence that stopped it."""
    done = CliRunner().invoke(cli.app, [*map(str, words)])
    return str(done.exception) if done.exception else done.output


def test_a_model_of_eight_tokens_writes_what_fits(tmp_path):
    folder = saved(tmp_path / "model", tiny_policy(positions=8))
    ask = ("sample", "hi", "--model", folder, "--n", 1, "--max-new-tokens")
    assert "\nhi:" in said(*ask, 5)
    assert said(*ask, 6) == (
        "A prompt of 2, 6 new tokens and EOS exceed the model's 8; shorten the prompt or allow "
        "fewer new tokens."
    )


def test_a_reward_model_of_eight_tokens_scores_what_fits(tmp_path):
    folder = tmp_path / "reward"
    ScalarModel(tiny_policy(positions=8).base_model).save(folder, tiny_tokenizer())
    ask = ("--prompt", "abcd", "--scorer", folder)
    assert "prefix + EOS" in said("score", "efg", *ask)  # 4 + 3 + EOS = 8
    assert "A sequence of 9 tokens, prompt and EOS included, exceeds the 8" in said(
        "score", "efgh", *ask
    )


@pytest.mark.parametrize(
    "special", [{}, {"pad_token": "end", "bos_token": "end", "unk_token": "end"}]
)
def test_two_words_are_enough_and_every_special_token_may_be_the_same(special, tmp_path):
    saved(tmp_path / "model", *two_words(**special))
    model, tokenizer = load_policy(tmp_path / "model")
    config = SamplingConfig(max_new_tokens=2, temperature=1.0)
    (batch,) = sample_text(model, tokenizer, ["hi", "hi hi hi"] * 20, config=config)
    ends = batch.finished(tokenizer.eos_token_id)
    assert ends.any() and not ends.all()
    lengths = batch.response_mask.sum(1)
    assert lengths[~ends].eq(2).all() and batch.old_logprobs.isfinite().all()
    assert batch.prompt_mask.sum(1)[:2].tolist() == [1, 3]  # "end" is padding and no prompt
    ScalarModel(model.base_model).save(tmp_path / "reward", tokenizer)
    words, *scores = prefix_scores(*load_scalar(tmp_path / "reward"), "hi", "hi hi")
    assert len(words) == 2 and all(x.isfinite().all() for x in scores)


def test_a_tokenizer_of_one_word_is_refused(tmp_path):
    model, tokenizer = two_words()
    one = Tokenizer(models.WordLevel({"end": 0}, unk_token="end"))
    saved(tmp_path / "model", model, PreTrainedTokenizerFast(tokenizer_object=one, eos_token="end"))
    assert "no vocabulary (its number of tokens is 1)" in refused(tmp_path / "model")


@pytest.mark.parametrize("named", [[], None, 99_999, [99_999], [0, 0]])
def test_ends_that_the_model_never_writes_change_nothing(named, tmp_path):
    with_generation(eos_token_id=named)(tmp_path / "model")
    model, tokenizer = load_policy(tmp_path / "model")
    ends = end_ids(model, tokenizer)
    assert ends[0] == tokenizer.eos_token_id and {*ends} <= {ends[0], 99_999}


@pytest.mark.parametrize("named", [-1, 10**30, 0.0, True, [[0]]])
def test_an_end_that_is_no_id_is_refused(named, tmp_path):
    with_generation(eos_token_id=named)(tmp_path / "model")
    assert "it must be a token id or a list of token ids" in refused(tmp_path / "model")


def test_settings_of_generate_are_not_used(tmp_path):
    plain, odd = saved(tmp_path / "plain"), saved(tmp_path / "odd")
    entries = {
        "forced_bos_token_id": 5,
        "forced_eos_token_id": 6,
        "suppress_tokens": [1, 2],
        "min_new_tokens": 50,
        "max_length": 3,
        "num_beams": 4,
        "repetition_penalty": 5.0,
        "temperature": "hot",
    }
    (odd / "generation_config.json").write_text(json.dumps(entries))
    (a,), (b,) = (sample_text(*load_policy(folder), ["hi"] * 4) for folder in (plain, odd))
    assert torch.equal(a.response_ids, b.response_ids)
