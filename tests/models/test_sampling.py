import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.core.rollout import Rollout
from minirlhf.models.adapters import fused_gelu, with_lora
from minirlhf.models.forward import (
    decode,
    encode,
    encode_prompts,
    policy_logprobs,
    response_values,
    token_scores,
)
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar, save_policy
from minirlhf.models.sampling import SamplingConfig, sample, sample_text
from tests.tiny import tiny_policy, tiny_tokenizer

PROMPTS = ["a", "a longer prompt\n", "mid"]


def draw(model, tokenizer, *, seed=0, **config):
    ids, mask = encode_prompts(tokenizer, PROMPTS)
    settings = SamplingConfig(**{"max_new_tokens": 12, **config})
    return sample(
        model,
        ids,
        mask,
        eos_id=tokenizer.eos_token_id,
        config=settings,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_sampled_log_probabilities_equal_those_of_a_second_forward(temperature, dtype, tolerance):
    model, tokenizer = tiny_policy().to(dtype), tiny_tokenizer()
    rollout = draw(model, tokenizer, temperature=temperature)
    again = policy_logprobs(model, rollout, temperature=temperature)
    assert rollout.response_mask.any()
    assert (again - rollout.old_logprobs).abs().max() < tolerance


def test_bfloat16_sampled_log_probabilities_have_a_bounded_error():
    # batches of 16 with seeds 0 to 5: largest difference 0.05 to 0.09 nats, mean 0.005 to 0.0065
    policy, tokenizer = load_policy("tiny-reviews-sft")
    (rollout,) = sample_text(policy.bfloat16(), tokenizer, ["a film\n", "the beach and more\n"] * 8)
    assert rollout.old_logprobs.dtype == torch.float32  # only the network runs in 16 bits
    with torch.no_grad():
        difference = (
            policy_logprobs(policy, rollout, temperature=0.7) - rollout.old_logprobs
        ).abs()
    assert difference.max() < 0.2 and difference.mean() < 0.013


def test_left_padding_changes_nothing():
    model, tokenizer = tiny_policy().double(), tiny_tokenizer()
    responses = ["x", "some words", "yes"]
    together = policy_logprobs(model, encode(tokenizer, PROMPTS, responses))
    for row, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        alone = policy_logprobs(model, encode(tokenizer, [prompt], [response]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-9)


def test_greedy_equals_transformers_generate():
    model, tokenizer = tiny_policy(3), tiny_tokenizer()
    ours = draw(model, tokenizer, greedy=True)
    ids, mask = encode_prompts(tokenizer, PROMPTS)
    theirs = model.generate(
        ids, attention_mask=mask.long(), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    width = ours.response_ids.shape[1]
    assert torch.equal(ours.response_ids, theirs[:, ids.shape[1] : ids.shape[1] + width])


def test_eos_ends_a_row_and_is_counted():
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # untie
        model.lm_head.weight[0] *= 25  # so that some responses end in EOS
    rollouts = [draw(model, tokenizer, seed=seed) for seed in range(20)]
    ended = [r for r in rollouts if r.finished(0).any()]
    assert ended
    for r in ended:
        for ids, mask in zip(r.response_ids, r.response_mask, strict=True):
            real = ids[mask]
            assert (real[:-1] != 0).all()
            assert len(real) == len(ids) or real[-1] == 0
        assert r.old_logprobs[~r.response_mask].eq(0).all()


def test_samples_follow_the_distribution():
    model, tokenizer = tiny_policy(5), tiny_tokenizer()
    ids, mask = encode_prompts(tokenizer, ["q"] * 4000)
    r = sample(
        model,
        ids,
        mask,
        eos_id=0,
        config=SamplingConfig(max_new_tokens=1),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        p = model(ids[:1]).logits[0, -1].softmax(-1)
    counts = torch.bincount(r.response_ids[:, 0], minlength=len(p))
    chi_square = ((counts - 4000 * p).square() / (4000 * p)).sum()
    assert (
        chi_square < 256 + 5 * (2 * 256) ** 0.5
    )  # 256 degrees of freedom, five standard deviations


def test_top_k_and_top_p_limit_the_tokens_and_are_refused_in_training():
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    ids, mask = encode_prompts(tokenizer, ["q"] * 300)
    with torch.no_grad():
        best = model(ids[:1]).logits[0, -1].topk(3).indices.tolist()
    r = sample(model, ids, mask, eos_id=0, config=SamplingConfig(max_new_tokens=1, top_k=3))
    assert set(r.response_ids.flatten().tolist()) == set(best)
    one = sample(model, ids, mask, eos_id=0, config=SamplingConfig(max_new_tokens=1, top_p=1e-9))
    assert set(one.response_ids.flatten().tolist()) == {best[0]}
    for config in (SamplingConfig(top_k=3), SamplingConfig(top_p=0.9), SamplingConfig(greedy=True)):
        with pytest.raises(ValueError, match="training loop"):
            config.for_training()


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_wrong_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingConfig(**bad)


def test_a_prompt_too_long_or_empty_is_refused():
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    with pytest.raises(ValueError, match="exceed the model's 64"):
        sample_text(model, tokenizer, ["x" * 60], config=SamplingConfig(max_new_tokens=12))
    for prompts in ([], ["fine", ""]):
        with pytest.raises(ValueError, match="at least one"):
            encode_prompts(tokenizer, prompts)


def test_encode_ends_in_eos_and_decodes_back():
    tokenizer = tiny_tokenizer()
    batch = encode(tokenizer, ["a", "bb"], ["caf\u00e9", ""])
    assert decode(tokenizer, batch) == ["caf\u00e9", ""]
    assert batch.finished(0).all() and batch.response_mask.sum(1).tolist() == [6, 1]
    cut = encode(tokenizer, ["a"], ["abcdef"], max_response=3)
    assert not cut.finished(0).any() and cut.response_ids.shape == (1, 3)


def test_the_value_of_a_token_depends_only_on_earlier_tokens():
    model, tokenizer = ScalarModel(tiny_policy().base_model).eval(), tiny_tokenizer()
    one, two = encode(tokenizer, ["ab"], ["xyz"]), encode(tokenizer, ["ab"], ["xyw"])
    v, w = response_values(model, one), response_values(model, two)
    assert torch.equal(
        v[0, :3], w[0, :3]
    )  # the value at the last letter is taken before the letter is read
    assert v[0, 3] != w[0, 3]
    scores = token_scores(model, one)
    assert torch.equal(scores[:, 1:-1], v)


def test_a_saved_scalar_model_gives_the_same_scores(tmp_path):
    # loading replaces GPT-2's GELU by torch's fused one, which may round differently
    model, tokenizer = ScalarModel(fused_gelu(tiny_policy()).base_model).eval(), tiny_tokenizer()
    model.shift, model.scale = 0.25, 2.0
    model.save(tmp_path / "rm", tokenizer, dtype=torch.float32)
    again, _ = load_scalar(tmp_path / "rm")
    batch = encode(tokenizer, PROMPTS, ["x", "yy", ""])
    torch.testing.assert_close(
        token_scores(again, batch), token_scores(model, batch), rtol=0, atol=0
    )
    assert [p.name for p in tmp_path.iterdir()] == ["rm"]  # no temporary folder is left


def test_a_saved_policy_gives_the_same_log_probabilities_and_unknown_names_are_refused(tmp_path):
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    save_policy(model, tokenizer, tmp_path / "p")
    again, tokenizer2 = load_policy(tmp_path / "p")
    assert tokenizer2("a b").input_ids == tokenizer("a b").input_ids
    batch = encode(tokenizer, PROMPTS, ["x", "yy", ""])
    torch.testing.assert_close(
        policy_logprobs(again, batch), policy_logprobs(model, batch), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="No model 'no-such-model-anywhere'"):
        load_policy("no-such-model-anywhere")
    with pytest.raises(ValueError, match="No reward model"):
        load_scalar(tmp_path / "p")


def test_right_padded_prompts_are_refused():
    ids = torch.tensor([[5, 0]])
    with pytest.raises(ValueError, match="left"):
        Rollout(
            ids, torch.tensor([[True, False]]), ids, torch.tensor([[True, True]]), torch.zeros(1, 2)
        )


def test_sampling_a_group_equals_sampling_repeated_prompts():
    model, tokenizer = tiny_policy(), tiny_tokenizer()
    ids, mask = encode_prompts(tokenizer, ["one", "a longer prompt"])
    config = SamplingConfig(max_new_tokens=6, temperature=1.0)
    group = sample(
        model,
        ids,
        mask,
        eos_id=0,
        config=config,
        samples_per_prompt=3,
        generator=torch.Generator().manual_seed(5),
    )
    each = sample(
        model,
        ids.repeat_interleave(3, 0),
        mask.repeat_interleave(3, 0),
        eos_id=0,
        config=config,
        generator=torch.Generator().manual_seed(5),
    )
    for name in ("prompt_ids", "prompt_mask", "response_ids", "response_mask"):
        assert torch.equal(getattr(group, name), getattr(each, name)), name
    torch.testing.assert_close(group.old_logprobs, each.old_logprobs, rtol=0, atol=1e-5)
    assert (
        len({tuple(row.tolist()) for row in group.response_ids[:3]}) > 1
    )  # three different samples


class BiasedEOS(torch.nn.Module):
    """A model with a bias on the logit of EOS at each position; `rows` counts what it computes."""

    def __init__(self, model, bias):
        super().__init__()
        self.model, self.config, self.rows = model.double(), model.config, []
        self.bias = torch.tensor(bias, dtype=torch.double)

    def forward(self, *, position_ids, **given):
        output = self.model(position_ids=position_ids, **given)
        output.logits[..., 0] += self.bias[position_ids[:, -output.logits.shape[1] :]]
        self.rows.append(len(position_ids))
        return output


NEVER, OFTEN, ALWAYS, BROKEN = -float("inf"), 4.0, 1e4, float("nan")


@torch.no_grad()
def sample_every_row(model, ids, mask, *, config, generator):
    """The plain loop: no cache, and every row is computed until the last one has ended."""
    prompt, alive = ids.shape[1], torch.ones(len(ids), 1, dtype=torch.bool)
    while alive.any() and ids.shape[1] < prompt + config.max_new_tokens:
        position = (mask.long().cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=position).logits
        cumulative = (logits[:, -1] / config.temperature).softmax(-1).cumsum(-1)
        uniform = torch.rand(len(ids), 1, dtype=torch.double, generator=generator)
        token = torch.searchsorted(cumulative, uniform, right=True).where(alive, 0)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, alive], 1)
        alive = alive & (token != 0)
    return ids[:, prompt:], mask[:, prompt:]


def prompts_of(lengths):
    return encode_prompts(tiny_tokenizer(), ["abcdefgh"[:n] for n in lengths])


def check_against_every_row(model, lengths, *, copies=1, temperature=1.0, seed=0):
    """The plain loop's tokens, and the log-probabilities of a second forward."""
    ids, mask = prompts_of(lengths)
    config = SamplingConfig(max_new_tokens=10, temperature=temperature)
    ours, plain = (torch.Generator().manual_seed(seed) for _ in range(2))
    rollout = sample(
        model, ids, mask, eos_id=0, config=config, samples_per_prompt=copies, generator=ours
    )
    ids, mask = ids.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0)
    tokens, real = sample_every_row(model, ids, mask, config=config, generator=plain)
    assert torch.equal(rollout.response_ids, tokens) and torch.equal(rollout.response_mask, real)
    assert torch.equal(
        ours.get_state(), plain.get_state()
    )  # the next batch draws the same random numbers too
    again = policy_logprobs(model, rollout, temperature=temperature)
    assert (again - rollout.old_logprobs).abs().max() < 1e-9
    assert rollout.old_logprobs[~real].eq(0).all()


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    copies=st.integers(1, 3),
    bias=st.lists(st.sampled_from([NEVER, 0.0, OFTEN, ALWAYS]), min_size=20, max_size=20),
    temperature=st.sampled_from([0.7, 1.0]),
    seed=st.integers(0, 99),
)
def test_dropping_ended_rows_changes_no_token(lengths, copies, bias, temperature, seed):
    model = BiasedEOS(tiny_policy(), bias)
    check_against_every_row(model, lengths, copies=copies, temperature=temperature, seed=seed)


@pytest.mark.parametrize("choice", [{"greedy": True}, {"top_k": 9}, {"top_p": 0.5}])
def test_dropping_ended_rows_changes_no_token_with_top_k_and_top_p(choice):
    model, (ids, mask) = BiasedEOS(tiny_policy(), [0.5] * 20), prompts_of([8, 1, 5] * 4)
    config = SamplingConfig(max_new_tokens=10, **choice)
    dropped, kept = (  # with eos = -1 no row ever ends
        sample(
            model, ids, mask, eos_id=eos, config=config, generator=torch.Generator().manual_seed(3)
        )
        for eos in (0, -1)
    )
    real = dropped.response_mask
    tokens = kept.response_ids[:, : real.shape[1]]
    assert torch.equal(dropped.response_ids[real], tokens[real])
    assert 0 < (tokens[real] == 0).sum() == (~real[:, -1] | (tokens[:, -1] == 0)).sum()


def tiny_model(kind):
    """A model with this kind of layers in its cache; the window is shorter than the sequences."""
    shape = dict(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    if kind == "sliding window":
        config = transformers.MistralConfig(**shape, sliding_window=5)
    elif kind == "sliding and full attention":
        layers = ["sliding_attention", "full_attention"]
        config = transformers.Gemma3TextConfig(
            **shape, head_dim=8, sliding_window=5, layer_types=layers
        )
    elif kind == "convolution":
        config = transformers.Lfm2Config(**shape, layer_types=["conv", "full_attention"])
    else:
        config = transformers.LlamaConfig(**shape)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return with_lora(model, 4) if kind == "adapters" else model


@pytest.mark.parametrize(
    "kind",
    ["full attention", "sliding window", "sliding and full attention", "convolution", "adapters"],
)
def test_rows_are_dropped_from_every_kind_of_cache(kind):
    model = BiasedEOS(tiny_model(kind), [OFTEN] * 20)
    for seed in range(3):
        model.rows.clear()
        check_against_every_row(model, [2, 7, 4], copies=2, seed=seed)
        assert min(model.rows[:10]) < 6, model.rows


# Prompts of 5, 3 and 1 tokens: the last prompt token has position 4, 2 and 0. The logits at
# position 6 give EOS, so the rows end with their 3rd, 5th and 7th token.
LENGTHS, END = [5, 3, 1], [*[NEVER] * 6, ALWAYS]


def test_the_model_computes_only_rows_that_have_not_ended():
    model, (ids, mask) = BiasedEOS(tiny_policy(), END), prompts_of(LENGTHS)
    rollout = sample(model, ids, mask, eos_id=0)
    assert rollout.response_mask.sum(1).tolist() == [3, 5, 7]
    assert model.rows == [3, 3, 3, 2, 2, 1, 1]
    model.rows.clear()
    sample(model, ids, mask, eos_id=0, samples_per_prompt=4)
    assert model.rows == [3, 12, 12, 8, 8, 4, 4]  # the prompt is read once


def test_greedy_draws_no_random_number():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    sample(
        tiny_policy(),
        *prompts_of(LENGTHS),
        eos_id=0,
        config=SamplingConfig(greedy=True),
        generator=generator,
    )
    assert torch.equal(generator.get_state(), before)


def test_nan_stops_the_run_only_in_a_row_that_has_not_ended():
    ids, mask = prompts_of(LENGTHS)
    after = BiasedEOS(tiny_policy(), [*END, BROKEN, BROKEN])  # no row comes to position 7
    assert sample(after, ids, mask, eos_id=0).finished(0).all()
    before = BiasedEOS(tiny_policy(), [*[NEVER] * 5, BROKEN, ALWAYS])
    with pytest.raises(FloatingPointError, match="NaN"):
        sample(before, ids, mask, eos_id=0)


def test_the_ends_of_a_response_are_looked_up_once_for_all_batches(monkeypatch):
    looked = []
    monkeypatch.setattr("minirlhf.models.sampling.end_ids", lambda *_: looked.append(1) or (0,))
    short = SamplingConfig(max_new_tokens=2)
    assert len(sample_text(tiny_policy(), tiny_tokenizer(), ["a"] * 3, config=short, batch_size=1))
    assert len(looked) == 1
