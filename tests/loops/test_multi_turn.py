"""Multi-turn DPO and KTO: the tool's tokens are read, and have no loss."""

from functools import partial

import pytest
import torch

from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.losses import DPOFormulas
from minirlhf.loops.online import OnlineConfig, pairs_of, responses_in_parts, train_online
from minirlhf.loops.preference import DPOConfig, preference_step
from minirlhf.models.forward import encode, encode_prompts, policy_logprobs
from minirlhf.models.sampling import SamplingConfig, sample
from tests.models.test_tool import EOS, PROMPTS, TOKENIZER, Echo, policy

SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0)


def drawn(reply=(7, 9), copies=4):
    return sample(
        policy(),
        *encode_prompts(TOKENIZER, PROMPTS),
        eos_id=EOS,
        config=SAMPLING,
        samples_per_prompt=copies,
        generator=torch.Generator().manual_seed(0),
        tool=Echo(call_end=3, reply=list(reply)),
    )


def config_of(loss="dpo", pick="best and worst", **dpo):
    return OnlineConfig(
        samples=4,
        refresh=2,
        pick=pick,
        missing_eos_penalty=0.0,
        sampling=SAMPLING,
        dpo=DPOConfig(
            loss=loss,
            steps=4,
            batch_size=4,
            max_response=16,
            optimiser=OptimiserConfig.plain(lr=1e-2),
            **dpo,
        ),
    )


def words(batch):
    return batch.action_mask.sum(1).double()


def test_a_response_with_turns_is_kept_as_the_ids_that_were_sampled():
    batch = drawn()
    responses = responses_in_parts(batch, TOKENIZER, (EOS,))
    with_turns = [i for i, r in enumerate(responses) if isinstance(r, list)]
    assert 3 <= len(with_turns)
    again = encode(TOKENIZER, [PROMPTS[i // 4] for i in range(16)], responses)
    for i in with_turns:
        ids, mine = (x[i][batch.response_mask[i]] for x in (batch.response_ids, batch.action_mask))
        there = again.response_mask[i]
        kept, chosen = again.response_ids[i][there], again.action_mask[i][there]
        finished = batch.finished(EOS)[i]
        # a truncated response gets an EOS, which counts only if it is the policy's turn
        assert kept.tolist() == ids.tolist() + [EOS] * (not finished)
        assert chosen.tolist() == mine.tolist() + [bool(mine[-1])] * (not finished)


def test_the_loss_of_a_pair_counts_the_actions_of_all_turns_and_nothing_else():
    # response: 5 6 ] {9 9} 4 EOS; the log-ratio sums over 5, 6, ], 4 and EOS
    turns = [([5, 6, 3], True), ([9, 9], False), ([4], True)]
    other = [([5, 3], True), ([8], False), ([6], True)]
    rows = {"prompt": [PROMPTS[0]], "chosen": [turns], "rejected": [other]}
    model, reference = policy(0), policy(1)
    log = preference_step(model, reference, TOKENIZER, rows, DPOConfig(beta=0.5, max_response=16))

    def log_ratio(row, chosen):
        flat = encode(TOKENIZER, [PROMPTS[0]], [[(part, True) for part, _ in row]])
        mask = torch.tensor([chosen])
        with torch.no_grad():
            return sum(
                sign * (policy_logprobs(m, flat)[mask]).sum()
                for m, sign in ((model, 1), (reference, -1))
            )

    chosen = log_ratio(turns, [True, True, True, False, False, True, True])
    rejected = log_ratio(other, [True, True, False, True, True])
    assert log["rewards/chosen"].item() == pytest.approx(0.5 * chosen.item(), abs=1e-9)
    assert log["rewards/rejected"].item() == pytest.approx(0.5 * rejected.item(), abs=1e-9)
    expected = -torch.nn.functional.logsigmoid(0.5 * (chosen - rejected))
    assert log["loss"].item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("loss, pick", [("dpo", "best and worst"), ("kto", "labels")])
@pytest.mark.parametrize("sync_every", [0, 2])
def test_online_training_with_a_tool_raises_the_score(loss, pick, sync_every):
    """Score: the share of a response that is the symbol 5; before training about 1 in 22."""

    def score(batch):
        fives = (batch.response_ids == 5) & batch.action_mask
        return (fives.sum(1) / batch.action_mask.sum(1)).double() - 0.04

    formulas = DPOFormulas(sample=partial(sample, tool=Echo(call_end=3, reply=[7, 9])))
    config = config_of(loss, pick, beta=0.1, sync_every=sync_every).with_steps(12)
    seen = []
    model, history = train_online(
        policy(),
        TOKENIZER,
        PROMPTS * 8,
        lambda batch: seen.append(batch) or score(batch),
        config,
        formulas=formulas,
    )
    assert any(not b.action_mask[b.response_mask].all() for b in seen)
    scores = [row["score"] for row in history if "score" in row]
    assert scores[-1] > scores[0] + 0.1  # seeds 0 to 2: 0.15 to 0.36


def test_labels_say_which_responses_have_a_score_above_0():
    config = config_of("kto", "labels")
    rows = pairs_of(["p", "q"], [*"abcdefgh"], torch.tensor([1, 0, 0, 1, 0, 0, 1.0, -1]), config)
    assert rows == {
        "prompt": ["p", "q"] * 4,
        "completion": ["a", "e", "b", "f", "c", "g", "d", "h"],
        "label": [True, False, False, False, False, True, True, False],
    }


@pytest.mark.parametrize(
    "loss, pick, sentence",
    [
        ("dpo", "labels", "loss of single responses, such as kto with pick='labels'"),
        ("kto", "best and worst", "loss of pairs with pick='best and worst'"),
    ],
)
def test_the_loss_must_fit_what_is_picked(loss, pick, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_of(loss, pick)


def test_sequence_log_probabilities_ignore_the_tools_tokens():
    batch = drawn()
    logprobs = policy_logprobs(policy(1), batch)
    spoiled = torch.where(batch.action_mask, logprobs, float("nan"))
    assert torch.equal(
        sequence_logprobs(spoiled, batch.action_mask),
        sequence_logprobs(logprobs, batch.action_mask),
    )
