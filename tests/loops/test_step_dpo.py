"""Step-DPO: pairs of steps by hand, the loss of a step, and a run that learns."""

import copy
import random
from dataclasses import replace

import pytest
import torch

from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import nothing_learned
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.losses import DPOFormulas
from minirlhf.loops.preference import DPOConfig, preference_step
from minirlhf.loops.pretrain import new_gpt2
from minirlhf.loops.step_dpo import StepDPOConfig, step_pairs, train_step_dpo
from minirlhf.models.forward import decode, encode, policy_logprobs
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.models.steps import step_end_ids, steps_of
from minirlhf.runtime import History
from minirlhf.tasks.arithmetic import character_tokenizer, right_step, step_tokenizer

TOKENIZER = step_tokenizer()
EOS = TOKENIZER.eos_token_id


def ids(text):
    return TOKENIZER(text).input_ids


def written(*texts, eos=True):
    """A formula `sample` that writes these responses, one for each row; then the tries."""
    queue = list(texts)

    def sample(model, prompt_ids, prompt_mask, *, eos_id, config, samples_per_prompt=1, **_):
        count = len(prompt_ids) * samples_per_prompt
        some, queue[:count] = queue[:count], []
        rows = [ids(text) for text in some]
        width = max(map(len, rows))
        response = torch.tensor([row + [EOS] * (width - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        prompt_ids, prompt_mask = (
            x.repeat_interleave(samples_per_prompt, 0) for x in (prompt_ids, prompt_mask)
        )
        return Rollout(prompt_ids, prompt_mask, response, mask, torch.zeros(mask.shape))

    return replace(DPOFormulas(), sample=sample)


def policy(seed=0):
    torch.manual_seed(seed)
    return new_gpt2(TOKENIZER, layers=1, width=16, heads=2, positions=128)


def config_of(**dpo):
    given = {"steps": 4, "batch_size": 4, "max_response": 64, "append_eos": False} | dpo
    return StepDPOConfig(
        step_end="=",
        tries=2,
        max_step=16,
        refresh=2,
        sampling=SamplingConfig(max_new_tokens=32, temperature=1.0),
        dpo=DPOConfig(optimiser=OptimiserConfig.plain(lr=1e-2), **given),
    )


END = "<|endoftext|>"


def pairs(prompts, *texts):
    model, config = policy(), config_of()
    ends = step_end_ids(model, TOKENIZER, "=")
    return step_pairs(model, TOKENIZER, prompts, right_step, config, ends, formulas=written(*texts))


@pytest.mark.parametrize(
    ("before", "step", "right"),
    [
        ("", "13-2*3=", True),
        ("", "8+5-6=", True),
        ("", "13-6=", False),  # two operations at once
        ("", "13-2*3", False),  # an end, although operations are left
        ("8+5-6=", "13-6=", True),
        ("8+5-6=13-6=", "7", True),
        ("8+5-6=13-6=", "7=", False),  # no end, although none is left
        ("8+5-6=13-6=", "8", False),
        ("8+5-6=14-6=", "8", True),  # follows from the step before, which is wrong
        ("", "=", False),
        ("", "", False),
    ],
)
def test_a_step_is_right_if_one_operation_leads_to_it_and_its_end_fits(before, step, right):
    assert right_step("8+5-2*3=", before, step) is right


def test_pairs_of_steps_by_hand():
    rows, log = pairs(
        ["8+5-2*3=", "1+2+3=", "9-4="],
        "8+5-6=14-6=8" + END,  # wrong at the second step
        "3+3=6" + END,  # right
        "6" + END,  # wrong at the only step
        # two tries for each of the two wrong steps
        "12-6=",
        "13-6=",
        "4" + END,
        "6" + END,
    )
    assert rows["prompt"] == ["8+5-2*3="]
    prefix = (ids("8+5-6="), False)
    assert rows["chosen"] == [[prefix, (ids("13-6="), True)]]
    assert rows["rejected"] == [[prefix, (ids("14-6="), True)]]
    # checks: 2 + 2 + 1 in the responses; 2 tries; then 4, and 6 again, which is known
    assert log["labels"] == 8
    assert log["right"] == pytest.approx(1 / 3)
    assert log["mended"] == 0.5


def test_the_first_right_try_is_taken_and_a_first_step_has_no_prefix():
    rows, log = pairs(["9-4="], "6" + END, "5" + END, "5=")
    assert rows["chosen"] == [[(ids("5" + END), True)]]
    assert rows["rejected"] == [[(ids("6" + END), True)]]
    assert log["labels"] == 2  # the second try is not checked


def test_a_try_that_was_cut_off_and_a_step_that_was_cut_off_are_no_steps():
    rows, log = pairs(["1+2+3="], "3+3=6", "x")
    assert rows["prompt"] == [] and log["labels"] == 1  # "6" without an end is not checked
    assert log["right"] == 0  # the response is not finished
    assert "mended" not in log  # no step was wrong


def test_a_try_that_is_a_further_end_of_the_step_before_is_no_step():
    """In a response 8+5-6==13-6= the second = ends no step, so it is none as a try either."""
    rows, log = pairs(["8+5-2*3="], "8+5-6=14-6=8" + END, "=", "13-6=")
    assert rows["chosen"] == [[(ids("8+5-6="), False), (ids("13-6="), True)]]
    assert log["labels"] == 3  # = is not checked
    _, log = pairs(["9-4="], "6" + END, "=", "5" + END)
    assert log["labels"] == 3  # at the start of a response it is a step, and checked


def test_mended_is_the_mean_over_the_batches_with_a_wrong_step():
    model, rows = policy(), []
    prompts = ["1+2=", "3+4=", "5+6=", "7+8="]
    wrong = iter([True, False])
    batches = []

    def judge(prompt, before, step):
        return not batches[-1]

    def sample(*given, samples_per_prompt=1, **more):
        if samples_per_prompt == 1:
            batches.append(next(wrong))
        texts = ["1" + END] * len(given[1]) * samples_per_prompt
        return written(*texts).sample(*given, samples_per_prompt=samples_per_prompt, **more)

    train_step_dpo(
        model,
        TOKENIZER,
        prompts,
        judge,
        replace(config_of(steps=2), refresh=2),
        formulas=replace(DPOFormulas(), sample=sample),
        on_step=rows.append,
    )
    assert rows[0]["mended"] == 0 and rows[0]["right"] == 0.5
    assert "no try of a wrong step was right, so there was no pair" in nothing_learned(rows)
    assert "no finished step was wrong" in nothing_learned([{"pairs": 0, "right": 1.0}])


def test_steps_of_a_response_are_its_sampled_ids():
    model = policy()
    ends = step_end_ids(model, TOKENIZER, "=")
    assert ends == (EOS, ids("=")[0])
    batch = encode(TOKENIZER, ["1+2="] * 2, ["1+=2==3", "="])
    steps = steps_of(batch, ends)
    assert [[TOKENIZER.decode(s) for s in row] for row in steps] == [
        ["1+=", "2=", "=3" + END],
        ["=", END],
    ]


def test_an_eos_after_the_end_of_a_step_is_checked_too():
    rows, log = pairs(["8+5-6="], "13-6=" + END, "7" + END, "7" + END)
    assert log["right"] == 0 and log["labels"] == 3
    assert rows["rejected"] == [[(ids("13-6="), False), (ids(END), True)]]
    assert rows["chosen"] == [[(ids("13-6="), False), (ids("7" + END), True)]]


def test_a_step_gets_no_end_and_the_loss_counts_the_step_alone():
    rows, _ = pairs(["8+5-2*3="], "8+5-6=14-6=8" + END, "13-6=", "13-6=")
    batch = encode(TOKENIZER, rows["prompt"], rows["chosen"], append_eos=False)
    assert batch.response_ids[0].tolist() == ids("8+5-6=13-6=")
    assert batch.action_mask[0].tolist() == [False] * 6 + [True] * 5
    # the same number as the step after a prompt that holds the prefix
    model = policy()
    as_prompt = encode(TOKENIZER, ["8+5-2*3=8+5-6="], ["13-6="], append_eos=False)
    of_step = [
        sequence_logprobs(policy_logprobs(model, b), b.action_mask) for b in (batch, as_prompt)
    ]
    assert of_step[0].item() == pytest.approx(of_step[1].item(), abs=1e-5)


def test_a_written_eos_ends_a_step_that_gets_no_other():
    batch = encode(TOKENIZER, ["9-4="] * 3, ["5" + END, "5=", "5"], append_eos=False)
    read = [
        row[mask].tolist()
        for row, mask in zip(batch.response_ids, batch.response_mask, strict=True)
    ]
    assert read == [ids("5" + END), ids("5="), ids("5")]


def test_the_first_loss_is_ln_2_and_its_gradient_raises_the_right_step():
    rows, _ = pairs(["8+5-2*3="], "8+5-6=14-6=8" + END, "13-6=", "13-6=")
    model, config = policy(), config_of()
    reference = copy.deepcopy(model)
    log = preference_step(model, reference, TOKENIZER, rows, config.dpo)
    assert log["loss"].item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.05 * p.grad
    after = preference_step(model, reference, TOKENIZER, rows, config.dpo)
    assert after["rewards/margins"] > 0


def right_after(judge, seed, steps=40):
    """The share of responses 1=0 that a small policy writes after training on a judge."""
    tokenizer = character_tokenizer("01=")
    torch.manual_seed(seed)
    model = new_gpt2(tokenizer, layers=1, width=32, heads=2, positions=32)
    config = StepDPOConfig(
        step_end="=",
        tries=4,
        max_step=4,
        sampling=SamplingConfig(max_new_tokens=6, temperature=1.0),
        dpo=DPOConfig(
            append_eos=False,
            steps=steps,
            batch_size=32,
            max_response=16,
            beta=0.5,
            optimiser=OptimiserConfig.plain(lr=3e-3),
            seed=seed,
        ),
    )
    train_step_dpo(model, tokenizer, ["0", "1"] * 32, judge, config)
    batch = sample_text(model, tokenizer, ["0", "1"] * 200, config=config.sampling, batch_size=400)
    return decode(tokenizer, batch[0]).count("1=0") / 400


def one_then_zero(prompt, before, step):
    """Right: 1= as the first step, 0 as the last."""
    return step == ("0" if before else "1=")


@pytest.mark.parametrize("seed", [0, 1])
def test_a_policy_learns_right_steps_and_a_judge_that_guesses_teaches_nothing(seed):
    guess = random.Random(seed)
    by_chance = right_after(lambda *step: guess.random() < 0.3, seed)
    assert right_after(one_then_zero, seed) > by_chance + 0.3


def test_a_run_resumes_bit_for_bit(tmp_path):
    prompts = ["8+5-2*3=", "1+2+3=", "9-4=", "2*3=", "7-2+1=", "4+4="]

    def lenient(prompt, before, step):
        return len(step) % 2 == 0

    def run(checkpoint=None, stop=None):
        model, history = policy(), History()

        def on_step(row):
            if stop is not None and row["step"] == stop:
                raise KeyboardInterrupt

        train_step_dpo(
            model,
            TOKENIZER,
            prompts,
            lenient,
            config_of(),
            history=history,
            on_step=on_step,
            checkpoint=checkpoint,
        )
        return model, history

    whole, rows = run()
    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Checkpoint(file, every=0), stop=2)
    again, same = run(Checkpoint(file, every=0, resume=True))
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [r["labels"] for r in rows if "labels" in r] == [
        r["labels"] for r in same if "labels" in r
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tries": 0}, "tries is 0"),
        ({"step_end": ""}, "step_end is ''"),
        ({"dpo": DPOConfig(max_response=128)}, "append_eos is True"),
        ({"dpo": DPOConfig(append_eos=False)}, "max_response is 32"),
        ({"dpo": DPOConfig(append_eos=False, max_response=128, loss="kto")}, "loss is 'kto'"),
        (
            {"dpo": DPOConfig(append_eos=False, max_response=128, precompute=True)},
            "precompute is True",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        StepDPOConfig(**change)


def test_a_text_that_ends_no_token_cannot_end_a_step():
    with pytest.raises(ValueError, match="step_end is '#'"):
        step_end_ids(policy(), TOKENIZER, "#")
