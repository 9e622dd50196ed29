"""The token table says what core's functions say, with every subset of the models."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from minirlhf import core, evaluate
from minirlhf.models.adapters import reference_of, with_lora
from minirlhf.models.forward import (
    encode,
    encode_prompts,
    policy_logits,
    policy_logprobs,
    response_values,
    token_scores,
)
from minirlhf.models.heads import ScalarModel, SharedCritic
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.rewards.model import prefix_scores, rollout_score
from tests.tiny import EOS, ending_policy, tiny_policy, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
P, A, B = (TOKENIZER(letter).input_ids[0] for letter in "pab")
SETTINGS = {"kl_coef": 0.5, "gamma": 0.9, "lam": 0.8, "beta": 0.3, "temperature": 0.7}
IDENTITY = ["text", "prompt", "position", "token", "chosen"]
WIDE = SimpleNamespace(max_position_embeddings=64)


class Bigram(torch.nn.Module):
    """A policy whose next token depends on the last one only: id -> {next id: probability}."""

    def __init__(self, table):
        super().__init__()
        self.config, self.modes = WIDE, []
        self.logits = torch.full((257, 257), -math.inf, dtype=torch.float64)
        self.logits[:, 0] = 0.0
        for before, nexts in table.items():
            self.logits[before] = -math.inf
            for after, probability in nexts.items():
                self.logits[before, after] = math.log(probability)

    def forward(self, input_ids, logits_to_keep, **given):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return SimpleNamespace(logits=self.logits[input_ids][:, -logits_to_keep:])


class Sum(torch.nn.Module):
    """A scalar model: at each token the sum of the numbers of the tokens so far."""

    def __init__(self, numbers):
        super().__init__()
        self.backbone = SimpleNamespace(config=WIDE)
        self.numbers = torch.zeros(257, dtype=torch.float64)
        for token, number in numbers.items():
            self.numbers[token] = number

    def forward(self, sequences, attention_mask, position_ids):
        return (self.numbers[sequences] * attention_mask).cumsum(1)


def rollout(prompts, responses, *, action_mask=None, old=None):
    """A batch of rows of ids, padded here."""
    p, r = max(map(len, prompts)), max(map(len, responses))
    mask = torch.tensor([[True] * len(row) + [False] * (r - len(row)) for row in responses])
    return core.Rollout(
        torch.tensor([[0] * (p - len(row)) + row for row in prompts]),
        torch.tensor([[False] * (p - len(row)) + [True] * len(row) for row in prompts]),
        torch.tensor([row + [0] * (r - len(row)) for row in responses]),
        mask,
        torch.zeros(mask.shape, dtype=torch.float64) if old is None else old,
        mask if action_mask is None else torch.tensor(action_mask),
    )


def four_models():
    """Four different networks in float64; the actor ends its responses now and then."""
    scalar = lambda seed: ScalarModel(tiny_policy(seed).base_model).eval().double()
    torch.manual_seed(7)
    return {
        "actor": ending_policy(0).double(),
        "reference": ending_policy(1).double(),
        "reward_model": scalar(2),
        "critic": scalar(3),
    }


def sampled(count=6, length=7):
    """Responses of a fifth network, so that ratio and KL are those of three different policies."""
    prompts = encode_prompts(TOKENIZER, ["ab\n", "c\n", "some\n"] * (count // 3))
    config = SamplingConfig(max_new_tokens=length)
    generator = torch.Generator().manual_seed(3)
    policy = ending_policy(4).double()
    return sample(policy, *prompts, eos_id=0, config=config, generator=generator)


def same(table, name, expected, mask):
    got = torch.tensor(table[name].tolist(), dtype=torch.float64)
    torch.testing.assert_close(got, expected[mask].double(), rtol=0, atol=1e-9, equal_nan=True)


def test_a_table_worked_by_hand():
    each = {A: 0.25, B: 0.25, 0: 0.25}
    actor = Bigram({P: each | {A: 0.5}, A: each | {B: 0.5}, B: each | {0: 0.5}})
    reference = Bigram({before: each | {0: 0.5} for before in (P, A, B)})
    old = torch.full((1, 3), math.log(0.25), dtype=torch.float64)
    table = evaluate.token_table(
        rollout([[P]], [[A, B, 0]], old=old),
        TOKENIZER,
        actor=actor,
        reference=reference,
        reward_model=Sum({A: 1.0, B: 2.0, 0: 0.5}),
        critic=Sum({P: 1.0, A: 1.0, B: -1.0}),
        temperature=1.0,
        kl_coef=0.5,
        gamma=0.5,
        lam=0.5,
        beta=2.0,
    )
    log2 = math.log(2)
    h = 0.5 * log2  # kl of EOS is log(1/4) - log(1/2) = -log 2; its penalty adds 0.5 log 2
    expected = {
        "prefix_reward": [1.5, 3.5, 3.5],  # 1 + 0.5, 1 + 2 + 0.5, and no second EOS
        "one_pass_reward": [1.0, 3.0, 3.5],
        "logprob": [-log2] * 3,
        "old_logprob": [-2 * log2] * 3,
        "ref_logprob": [-2 * log2, -2 * log2, -log2],
        "kl": [0.0, 0.0, -log2],
        "reward": [0.0, 0.0, 3.5 + h],
        "value": [1.0, 2.0, 1.0],  # before each token
        # gamma 1/2: 0 + 2/2 - 1,  0 + 1/2 - 2,  3.5 + h - 1
        "td_error": [0.0, -1.5, 2.5 + h],
        # gamma lam = 1/4: A2 = 2.5 + h, A1 = -1.5 + A2 / 4, A0 = 0 + A1 / 4
        "advantage": [-0.21875 + h / 16, -0.875 + h / 4, 2.5 + h],
        "return": [0.78125 + h / 16, 1.125 + h / 4, 3.5 + h],
        "ratio": [2.0, 2.0, 2.0],  # (1/2) / (1/4)
        "clipped": [False, False, True],  # above 1.2, but only the last advantage is positive
        "implicit_reward": [2 * log2, 2 * log2, 0.0],
        "entropy": [1.5 * log2] * 3,
    }
    assert list(table) == [*IDENTITY, *expected, "alternatives", "ref_alternatives"]
    assert table["token"].tolist() == ["a", "b", EOS] and set(table["prompt"]) == {"p"}
    assert table["position"].tolist() == [0, 1, 2] and table["chosen"].all()
    for name, numbers in expected.items():
        assert table[name].tolist() == pytest.approx(numbers, abs=1e-12), name
    assert table["alternatives"][1][0] == ("b", pytest.approx(0.5))
    assert dict(table["ref_alternatives"][0]) == pytest.approx({"a": 0.25, "b": 0.25, EOS: 0.5})
    assert {len(likely) for likely in table["alternatives"]} == {3}  # not those of probability 0
    assert table.attrs["settings"] == {"kl_coef": 0.5, "gamma": 0.5, "lam": 0.5}


def test_every_column_is_what_core_says():
    models, batch = four_models(), sampled()
    mask, old = batch.action_mask, batch.old_logprobs
    assert 0 < (~mask).sum() and len(set(mask.sum(1).tolist())) > 2  # several lengths
    table = evaluate.token_table(batch, TOKENIZER, **models, **SETTINGS)
    with torch.no_grad():
        at = {"temperature": 0.7}
        logprobs = policy_logprobs(models["actor"], batch, **at)
        ref = policy_logprobs(models["reference"], batch, **at)
        values = response_values(models["critic"], batch)
        scores = rollout_score(models["reward_model"], 0)(batch)
        rewards = core.kl_shaped_rewards(scores, old, ref, mask, kl_coef=0.5)
        advantages, returns = core.gae(rewards, values, mask, gamma=0.9, lam=0.8)
        entropy = core.entropy(policy_logits(models["actor"], batch), mask, **at)
        one_pass = token_scores(models["reward_model"], batch)[:, batch.prompt_ids.shape[1] :]
    for name, expected in {
        "logprob": logprobs,
        "old_logprob": old,
        "ref_logprob": ref,
        "kl": core.k1(old, ref, mask),
        "reward": rewards,
        "value": values,
        "td_error": core.td_errors(rewards, values, mask, gamma=0.9),
        "advantage": advantages,
        "return": returns,
        "ratio": core.log_ratio(logprobs, old, mask).exp(),
        "clipped": core.is_clipped(logprobs, old, advantages, mask),
        "implicit_reward": 0.3 * core.log_ratio(logprobs, ref, mask),
        "entropy": entropy,
        "one_pass_reward": one_pass,
    }.items():
        same(table, name, expected, mask)
    last = table.groupby("text")["prefix_reward"].last().tolist()
    assert last == pytest.approx(scores.tolist(), abs=1e-9)
    assert 0 < table["clipped"].sum() < len(table)


def test_the_clip_range_is_the_one_that_is_given():
    models, batch = four_models(), sampled()
    wide = evaluate.token_table(batch, TOKENIZER, **models, clip_eps=0.99, clip_eps_high=1e9)
    assert not wide["clipped"].any()
    low = evaluate.token_table(batch, TOKENIZER, **models, clip_eps=0.0)
    positive = (low["advantage"] > 0) == (low["ratio"] > 1)
    assert (low["clipped"] == positive).all()


def test_the_prefix_rewards_are_those_of_prefix_scores():
    model, texts = four_models()["reward_model"], ["good", "a longer one"]
    batch = encode(TOKENIZER, ["a\n", "bb\n"], texts)
    table = evaluate.token_table(batch, TOKENIZER, reward_model=model)
    assert list(table) == [*IDENTITY, "prefix_reward", "one_pass_reward"]
    for row, text in enumerate(texts):
        here = table[table["text"] == row]
        tokens, with_eos, one_pass = prefix_scores(model, TOKENIZER, ["a\n", "bb\n"][row], text)
        assert here["token"].tolist() == [*tokens, EOS]
        assert here["prefix_reward"].tolist()[:-1] == pytest.approx(with_eos.tolist(), abs=1e-9)
        assert here["one_pass_reward"].tolist()[:-1] == pytest.approx(one_pass.tolist(), abs=1e-9)
        last = here["prefix_reward"].tolist()
        assert last[-1] == pytest.approx(last[-2], abs=1e-9)  # EOS is there once, both times


def test_many_prefixes_are_scored_in_several_batches():
    model = Sum({A: 1.0, 0: 100.0})
    table = evaluate.token_table(rollout([[P]] * 5, [[A] * 20] * 5), TOKENIZER, reward_model=model)
    assert table["prefix_reward"].tolist() == [float(n) + 100 for n in range(1, 21)] * 5


def test_a_row_alone_has_the_same_table_as_in_a_batch():
    models, batch = four_models(), sampled()
    whole = evaluate.token_table(batch, TOKENIZER, **models, **SETTINGS)
    for row in range(len(batch.response_mask)):
        alone = evaluate.token_table(batch.select([row]), TOKENIZER, **models, **SETTINGS)
        here = whole[whole["text"] == row].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone.assign(text=row), here, rtol=0, atol=1e-9)


def test_a_response_without_tokens_has_no_rows():
    old = torch.full((2, 2), -1.0, dtype=torch.float64)
    table = evaluate.token_table(
        rollout([[P], [P]], [[], [A, B]], old=old), TOKENIZER, **four_models()
    )
    assert table["text"].tolist() == [1, 1]


def test_a_token_that_the_policy_did_not_choose_has_no_numbers_of_the_policy():
    models = four_models()
    action = [[True, False, False, True, True], [True, True, True, False, False]]
    old = torch.full((2, 5), -5.0, dtype=torch.float64)
    batch = rollout([[P], [P, A]], [[A, B, B, A, 0], [A, A, B]], action_mask=action, old=old)
    table = evaluate.token_table(batch, TOKENIZER, **models, **SETTINGS)
    assert table["chosen"].tolist() == [True, False, False, True, True, True, True, True]
    holes = table[~table["chosen"]]
    of_all = [*IDENTITY, "prefix_reward", "one_pass_reward"]
    assert holes[of_all].notna().all(axis=None)
    assert holes["alternatives"].tolist() == holes["ref_alternatives"].tolist() == [[], []]
    assert not holes["clipped"].any()
    numbers = table.columns.drop([*of_all, "clipped", "alternatives", "ref_alternatives"])
    assert holes[numbers].isna().all(axis=None)
    assert table[table["chosen"]][numbers].notna().all(axis=None)
    # the TD error of the token before the hole looks at the value of the token after it
    first, after = table.iloc[0], table.iloc[3]
    expected = first["reward"] + 0.9 * after["value"] - first["value"]
    assert first["td_error"] == pytest.approx(expected, abs=1e-12)
    # a hole is read: the logits after it depend on it
    other = rollout([[P], [P, A]], [[A, A, B, A, 0], [A, A, B]], action_mask=action, old=old)
    changed = evaluate.token_table(other, TOKENIZER, **models, **SETTINGS)
    assert changed["logprob"][0] == pytest.approx(table["logprob"][0], abs=1e-12)
    assert changed["logprob"][3] != pytest.approx(table["logprob"][3], abs=1e-6)


def test_alternatives_are_the_likeliest_next_tokens():
    models, batch = four_models(), sampled()
    table = evaluate.token_table(batch, TOKENIZER, **models, **SETTINGS, alternatives=4)
    with torch.no_grad():
        logits = {
            "alternatives": policy_logits(models["actor"], batch)[batch.action_mask],
            "ref_alternatives": policy_logits(models["reference"], batch)[batch.action_mask],
        }
    for name, of_model in logits.items():
        best, ids = (of_model / 0.7).softmax(-1).sort(descending=True)
        for row, listed in enumerate(table[name]):
            assert [p for _, p in listed] == pytest.approx(best[row, :4].tolist(), abs=1e-12)
            assert listed[0][0] == evaluate.token_text(TOKENIZER, int(ids[row, 0]))
            assert sum(p for _, p in listed) <= 1
    every = evaluate.token_table(batch, TOKENIZER, **models, **SETTINGS, alternatives=300)
    for policy in ("", "ref_"):  # all 257 tokens: the sampled one is among them
        for _, row in every.iterrows():
            listed = dict(row[f"{policy}alternatives"])
            assert sum(listed.values()) == pytest.approx(1, abs=1e-9)
            assert listed[row["token"]] == pytest.approx(math.exp(row[f"{policy}logprob"]))
    none = evaluate.token_table(batch, TOKENIZER, **models, **SETTINGS, alternatives=0)
    assert not {"alternatives", "ref_alternatives"} & set(none)


def test_a_model_that_is_not_given_leaves_its_columns_out():
    models, batch = four_models(), sampled()
    table = lambda *names, **given: evaluate.token_table(
        batch, TOKENIZER, **{name: models[name] for name in names}, **given
    )
    compared = ["logprob", "old_logprob", "ref_logprob", "kl", "ratio"]
    lists = ["alternatives", "ref_alternatives"]
    assert list(table()) == [*IDENTITY, "old_logprob"]
    assert list(table("reference")) == [
        *IDENTITY,
        *("old_logprob", "ref_logprob", "kl", "ref_alternatives"),
    ]
    dpo = table("actor", "reference", beta=0.1)
    assert list(dpo) == [*IDENTITY, *compared, "implicit_reward", "entropy", *lists]
    rewards = ["prefix_reward", "one_pass_reward"]
    without_critic = table("actor", "reference", "reward_model", kl_coef=0.1)
    assert list(without_critic) == [
        *IDENTITY,
        *rewards,
        *compared[:-1],
        *("reward", "ratio", "entropy"),
        *lists,
    ]
    no_penalty = table("reward_model", "critic")
    returns = ["value", "td_error", "advantage", "return"]
    assert list(no_penalty) == [*IDENTITY, *rewards, "old_logprob", "reward", *returns]
    assert no_penalty["reward"].ne(0).groupby(no_penalty["text"]).sum().eq(1).all()


def test_a_kl_penalty_needs_a_reference():
    models, batch = four_models(), sampled()
    given = {name: models[name] for name in ("actor", "reward_model", "critic")}
    without = r"kl_coef is 0.5; it must be 0 without log-probabilities of both"
    with pytest.raises(ValueError, match=without):
        evaluate.token_table(batch, TOKENIZER, **given, kl_coef=0.5)
    with pytest.raises(ValueError, match=without):  # no critic either
        evaluate.token_table(batch, TOKENIZER, reward_model=models["reward_model"], kl_coef=0.5)
    carried = batch.with_columns(rewards=torch.zeros_like(batch.old_logprobs))
    table = evaluate.token_table(carried, TOKENIZER, **given, kl_coef=0.5)  # nothing is computed
    assert table["reward"].eq(0).all()
    with pytest.raises(ValueError, match="alternatives is -1; it must be 0 or more"):
        evaluate.token_table(batch, TOKENIZER, alternatives=-1)


def test_a_column_with_the_name_of_the_tables_own_is_refused():
    batch = sampled()
    with pytest.raises(ValueError, match="column of the batch is 'position'; it must be another"):
        evaluate.token_table(batch.with_columns(position=batch.old_logprobs), TOKENIZER)


def test_the_columns_that_a_batch_carries_are_the_ones_shown():
    models, batch = four_models(), sampled()
    mask, shape = batch.action_mask, batch.old_logprobs.shape
    random = lambda seed: torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    ppo = {n: random(i) for i, n in enumerate(("values", "advantages", "returns", "rewards"))}
    table = evaluate.token_table(batch.with_columns(**ppo), TOKENIZER, **models, **SETTINGS)
    for name, column in ppo.items():
        same(table, name.removesuffix("s"), column, mask)
    same(table, "td_error", core.td_errors(ppo["rewards"], ppo["values"], mask, gamma=0.9), mask)
    clipped = core.is_clipped(
        policy_logprobs(models["actor"], batch, temperature=0.7),
        batch.old_logprobs,
        ppo["advantages"],
        mask,
    )
    same(table, "clipped", clipped, mask)


def test_a_group_batch_shows_the_advantage_of_the_response_at_every_token():
    models, batch = four_models(), sampled()
    ref = policy_logprobs(models["reference"], batch, temperature=0.7).detach()
    scores = torch.arange(6.0, dtype=torch.float64)
    group = batch.with_columns(
        advantages=torch.arange(-2.0, 4.0), ref_logprobs=ref, scores=scores, process=ref + 1
    )
    table = evaluate.token_table(group, TOKENIZER, actor=models["actor"], kl_coef=0.5)
    assert table["advantage"].tolist() == [row - 2.0 for row in table["text"]]
    assert table["score"].tolist() == [float(row) for row in table["text"]]
    assert (table["kl"] == table["old_logprob"] - table["ref_logprob"]).all()
    last = table.groupby("text").last()
    assert (last["reward"] + 0.5 * last["kl"]).tolist() == pytest.approx(scores.tolist())
    same(table, "process", ref + 1, batch.action_mask)
    assert "value" not in table and "return" not in table


def test_written_responses_are_read_as_if_the_actor_had_sampled_them():
    models = four_models()
    batch = encode(TOKENIZER, ["a\n"], ["good"])
    table = evaluate.token_table(batch, TOKENIZER, **models, **SETTINGS)
    assert (table["old_logprob"] == table["logprob"]).all() and (table["ratio"] == 1).all()
    assert (table["kl"] == table["logprob"] - table["ref_logprob"]).all()
    assert table["kl"].abs().min() > 0 and not table["clipped"].any()


def test_models_are_read_in_evaluation_mode_without_gradients_and_left_as_they_were():
    models, batch = four_models(), sampled()
    before = evaluate.token_table(batch, TOKENIZER, **models)
    for model in models.values():
        model.train()
    models["actor"].transformer.h[0].eval()
    modes = [[m.training for m in model.modules()] for model in models.values()]
    pd.testing.assert_frame_equal(evaluate.token_table(batch, TOKENIZER, **models), before)
    assert modes == [[m.training for m in model.modules()] for model in models.values()]
    stub = Bigram({}).train()
    evaluate.token_table(rollout([[P]], [[0]]), TOKENIZER, actor=stub)
    assert stub.modes == [(False, False)] and stub.training


def test_a_shared_critic_and_a_reference_below_an_adapter_are_read():
    batch, actor = sampled(), with_lora(tiny_policy(0), 2, seed=0)
    reference = reference_of(actor)
    torch.manual_seed(0)
    critic = SharedCritic(actor)
    actor.train()
    scores = torch.zeros(6)
    table = evaluate.token_table(
        batch.with_columns(scores=scores), TOKENIZER, reference=reference, critic=critic
    )
    assert actor.training
    same(
        table,
        "ref_logprob",
        policy_logprobs(actor.eval(), batch, temperature=0.7),
        batch.action_mask,
    )
    same(table, "value", response_values(critic, batch), batch.action_mask)


def test_a_part_of_a_character_is_shown_as_its_bytes():
    shown = lambda text: [evaluate.token_text(TOKENIZER, i) for i in TOKENIZER(text).input_ids]
    assert shown("a b") == ["a", " ", "b"]
    assert shown("\u597d") == ["\\xe5", "\\xa5", "\\xbd"]  # its three bytes in UTF-8
    assert shown("\n\t\u00ad") == ["\n", "\t", "\\xc2", "\\xad"]
    assert evaluate.token_text(TOKENIZER, 0) == EOS


def test_no_token_of_the_committed_vocabulary_loses_a_byte():
    tokenizer = load_policy("tiny-reviews-sft")[1]
    for text in ("caf\u00e9 \u597d \U0001f600\n  a", "it's \u2014 fine . 100 %"):
        joined = b"".join(
            token.encode("latin-1").decode("unicode_escape").encode("latin-1")
            if "\\x" in token
            else token.encode()
            for token in (evaluate.token_text(tokenizer, i) for i in tokenizer(text).input_ids)
        )
        assert joined == text.encode()
    for token_id in range(len(tokenizer)):
        text = evaluate.token_text(tokenizer, token_id)
        assert text and "\ufffd" not in text


def test_a_replacement_character_of_the_text_and_another_kind_of_tokenizer():
    known = SimpleNamespace(
        decode=lambda ids, **_: "\ufffd",
        convert_ids_to_tokens=lambda i: {0: "\u00ef\u00bf\u00bd", 1: "<0xE5>\u2581"}[i],
    )
    assert evaluate.token_text(known, 0) == "\ufffd"  # EF BF BD is that character in UTF-8
    assert evaluate.token_text(known, 1) == "<0xE5>\u2581"
