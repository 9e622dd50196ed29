"""A model against its tokenizer: ends of a response, ids that the model has, padding."""

import copy
import json

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from minirlhf.core.rollout import Rollout
from minirlhf.evaluate.tokens import token_table
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import with_lora
from minirlhf.models.fit import check_fit, end_ids
from minirlhf.models.forward import decode, encode_prompts
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar, save_policy
from minirlhf.models.sampling import SamplingConfig, sample, sample_text
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.model import end_with_eos, rollout_score
from tests.loops.test_loops import PAIRS, PROMPTS, first_half
from tests.tiny import tiny_policy, tiny_tokenizer

SHORT = SamplingConfig(max_new_tokens=8, temperature=1.0)


def grown(*tokens, special=False):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    return tokenizer


def without_eos():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def with_ends(eos_token_id, *, own=True):
    """A policy whose generation_config names these ends, as a file of its own or from config."""
    model = tiny_policy()
    model.generation_config = GenerationConfig(eos_token_id=eos_token_id)
    model.generation_config._from_model_config = not own
    return model


@pytest.mark.parametrize(
    "model, tokenizer, ends",
    [
        (tiny_policy(), tiny_tokenizer(), (0,)),
        (with_ends([5, 0, 9]), tiny_tokenizer(), (0, 5, 9)),  # EOS first, each once
        (with_ends([5, 9], own=False), tiny_tokenizer(), (0, 5, 9)),
        (with_ends(5), tiny_tokenizer(), (0, 5)),
        (with_ends(5, own=False), tiny_tokenizer(), (0,)),  # a default: 5 is an ordinary token
        (with_ends(None), tiny_tokenizer(), (0,)),
        (with_lora(with_ends([0, 5]), 2), tiny_tokenizer(), (0, 5)),
    ],
)
def test_a_response_ends_at_eos_and_at_what_generation_config_names(model, tokenizer, ends):
    assert end_ids(model, tokenizer) == ends


def test_a_special_token_that_config_names_ends_a_response():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["$"]})
    dollar = tokenizer.convert_tokens_to_ids("$")
    assert end_ids(with_ends(dollar, own=False), tokenizer) == (0, dollar)


def test_sampling_stops_at_any_end_and_fills_up_with_eos():
    ids, mask = encode_prompts(tiny_tokenizer(), ["a", "bc"] * 20)
    given = dict(config=SamplingConfig(max_new_tokens=20, temperature=1.0))
    ends = (0, *range(1, 40))
    batch = sample(
        tiny_policy(), ids, mask, eos_id=ends, generator=torch.Generator().manual_seed(0), **given
    )
    whole = sample(
        tiny_policy(), ids, mask, eos_id=-1, generator=torch.Generator().manual_seed(0), **given
    )
    width, short = batch.response_ids.shape[1], 0
    for row, length in enumerate(batch.response_mask.sum(1).tolist()):
        written = whole.response_ids[row].tolist()
        first = next((t for t, token in enumerate(written) if token in ends), len(written) - 1)
        assert length == first + 1 and batch.finished(ends)[row] == (written[first] in ends)
        assert batch.response_ids[row].tolist() == written[:length] + [0] * (width - length)
        short += length < 20
    assert short > 20


def rollout(rows, width=4):
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    prompt = torch.ones(len(rows), 1, dtype=torch.long)
    return Rollout(prompt, prompt.bool(), ids, mask, torch.zeros(ids.shape))


def test_a_batch_is_finished_at_any_end():
    batch = rollout([[7, 0], [7, 5], [5, 7], [7, 7, 7, 7], []])
    assert batch.finished(0).tolist() == [True, False, False, False, False]
    assert batch.finished((0, 5)).tolist() == [True, True, False, False, False]


def test_for_a_reward_model_eos_takes_the_place_of_another_end():
    ended = end_with_eos(rollout([[7, 0], [7, 5], [5, 7], [7, 7, 7, 7], []]), (0, 5))
    assert [
        ids[mask].tolist()
        for ids, mask in zip(ended.response_ids, ended.response_mask, strict=True)
    ] == [
        [7, 0],
        [7, 0],
        [5, 7, 0],
        [7, 7, 7, 7, 0],
        [0],
    ]


def test_ends_survive_saving_and_are_used_by_every_sampling_loop(tmp_path):
    save_policy(with_ends([0, *range(1, 120)]), tiny_tokenizer(), tmp_path / "policy")
    model, tokenizer = load_policy(tmp_path / "policy")
    assert len(end_ids(model, tokenizer)) == 120
    prompts = ["a", "b", "c", "d"]
    (batch,) = sample_text(model, tokenizer, prompts * 8)
    assert batch.finished(end_ids(model, tokenizer)).float().mean() > 0.9
    grpo = GroupConfig(steps=1, prompts_per_step=2, group_size=8, minibatch_size=16)
    history = train_group(copy.deepcopy(model), tokenizer, prompts, first_half, grpo)[1]
    assert history[0]["missing_eos"] < 0.2 and history[0]["length"] < 8
    ppo = PPOConfig(steps=1, batch_size=16, minibatch_size=16)
    critic = ScalarModel(tiny_policy(1).base_model)
    history = train_ppo(copy.deepcopy(model), critic, tokenizer, prompts, first_half, ppo)[2]
    assert history[0]["missing_eos"] < 0.2 and history[0]["length"] < 8
    online = OnlineConfig(dpo=DPOConfig(steps=1, batch_size=8))
    history = train_online(copy.deepcopy(model), tokenizer, prompts * 2, first_half, online)[1]
    assert history[0]["length"] < 8


LOOPS = {
    "sft": lambda model, tokenizer: train_sft(
        model,
        tokenizer,
        PAIRS.rename_column("chosen", "completion").remove_columns("rejected"),
        SFTConfig(),
    ),
    "reward": lambda model, tokenizer: train_reward_model(
        model.base_model, tokenizer, PAIRS, RewardConfig()
    ),
    "ppo": lambda model, tokenizer: train_ppo(
        model, ScalarModel(model.base_model), tokenizer, PROMPTS, first_half, PPOConfig()
    ),
    "grpo": lambda model, tokenizer: train_group(
        model, tokenizer, PROMPTS, first_half, GroupConfig()
    ),
    "dpo": lambda model, tokenizer: train_dpo(model, tokenizer, PAIRS, DPOConfig()),
    "online": lambda model, tokenizer: train_online(
        model, tokenizer, PROMPTS, first_half, OnlineConfig()
    ),
    "sample": lambda model, tokenizer: sample_text(model, tokenizer, ["a"]),
}
WRONG = {
    "no EOS": (without_eos, "The tokenizer names no EOS (end of sequence); every command that"),
    "a token more": (
        lambda: grown("<new>"),
        "The tokenizer has ids up to 257 ('<new>'), but the model's embedding has 257 rows",
    ),
    "special tokens": (
        lambda: grown("<|im_start|>", "<|im_end|>", special=True),
        "ids up to 258 ('<|im_end|>'), but the model's embedding has 257 rows",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_tokenizer_that_does_not_fit_is_refused_before_the_first_step(loop, wrong):
    make, sentence = WRONG[wrong]
    with pytest.raises(ValueError) as caught:
        LOOPS[loop](tiny_policy(), make())
    assert sentence in str(caught.value)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_folder_whose_tokenizer_does_not_fit_is_refused(wrong, tmp_path):
    make, sentence = WRONG[wrong]
    save_policy(tiny_policy(), make(), tmp_path / "policy")
    ScalarModel(tiny_policy().base_model).save(tmp_path / "reward", make())
    for load, name in ((load_policy, "policy"), (load_scalar, "reward")):
        with pytest.raises(ValueError) as caught:
            load(tmp_path / name)
        assert sentence in str(caught.value) and name in str(caught.value)


def test_a_critic_or_a_reward_model_of_another_vocabulary_is_refused():
    policy, small = tiny_policy(vocab_size=400), ScalarModel(tiny_policy(vocab_size=100).base_model)
    with pytest.raises(
        ValueError, match="ids up to 256 .*, but the model's embedding has 100 rows"
    ):
        train_ppo(policy, small, tiny_tokenizer(), PROMPTS, first_half, PPOConfig())
    (batch,) = sample_text(policy, tiny_tokenizer(), ["a", "b"] * 8, config=SHORT)
    with pytest.raises(ValueError, match="token id 3.., but the model's embedding has 100 rows"):
        rollout_score(small, 0)(batch)


def test_an_eos_that_the_vocabulary_lacks_is_refused(tmp_path):
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "policy")
    file = tmp_path / "policy" / "tokenizer_config.json"
    table = json.loads(file.read_text()) | {"eos_token": "</s>"}
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="ids up to 257 .'</s>'., but the model's embedding"):
        load_policy(tmp_path / "policy")


def test_a_padding_token_beyond_the_embedding_is_of_no_account(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == 257
    save_policy(tiny_policy(), tokenizer, tmp_path / "policy")
    model, tokenizer = load_policy(tmp_path / "policy")
    assert int(encode_prompts(tokenizer, ["a", "longer"])[0].max()) < 257
    (batch,) = sample_text(model, tokenizer, ["a", "longer"], config=SHORT)
    assert batch.response_mask.any()
    assert len(train_dpo(model, tokenizer, PAIRS, DPOConfig(steps=2))[1]) == 2


def test_a_tokenizer_without_padding_token_is_used(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert encode_prompts(tokenizer, ["a", "longer"])[0].shape == (2, 6)
    save_policy(tiny_policy(), tokenizer, tmp_path / "policy")
    assert load_policy(tmp_path / "policy")[1].pad_token_id == 0


def test_ids_that_the_tokenizer_lacks_are_sampled_and_have_no_text(tmp_path):
    """Vocabularies are often padded: the model may draw an id for which there is no text."""
    save_policy(tiny_policy(vocab_size=400), tiny_tokenizer(), tmp_path / "policy")
    model, tokenizer = load_policy(tmp_path / "policy")
    (batch,) = sample_text(model, tokenizer, ["a", "bc", "d"] * 4, config=SHORT)
    beyond = batch.response_ids >= len(tokenizer)
    assert beyond.any()
    for text, ids, mask in zip(
        decode(tokenizer, batch), batch.response_ids, batch.response_mask, strict=True
    ):
        known = ids[mask & (ids < len(tokenizer))]
        assert text == tokenizer.decode(known, skip_special_tokens=True)
    table = token_table(batch, tokenizer, actor=model)
    assert len(table) == int(batch.response_mask.sum())
    scores = reward_function(lambda prompts, completions, **_: map(len, completions), tokenizer)
    for train in (
        lambda: train_group(model, tokenizer, PROMPTS, scores, GroupConfig(steps=2))[1],
        lambda: train_online(
            model, tokenizer, PROMPTS, first_half, OnlineConfig(dpo=DPOConfig(steps=2))
        )[1],
    ):
        assert len(train()) == 2


def test_an_image_token_beyond_the_embedding_is_no_reason_to_refuse(tmp_path):
    grown("<image>", special=True).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    table = json.loads(file.read_text()) | {"extra_special_tokens": {"image_token": "<image>"}}
    file.write_text(json.dumps(table))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.image_token == "<image>" and len(tokenizer) == 258
    check_fit(tiny_policy(), tokenizer)


@pytest.mark.parametrize("ends", [[True], [-1], [2.0]])
def test_ends_that_are_no_ids_of_tokens_are_refused(ends):
    model = tiny_policy()
    model.generation_config.eos_token_id = ends
    with pytest.raises(ValueError, match="eos_token_id in generation_config is"):
        end_ids(model, tiny_tokenizer())
