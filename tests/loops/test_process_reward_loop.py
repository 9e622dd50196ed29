"""Process reward models: labels from continuations by hand, the training loop, the score."""

import copy
import random
import re

import pytest
import torch
from datasets import Dataset

from minirlhf.core.process_reward import process_reward_loss
from minirlhf.core.rollout import Rollout
from minirlhf.loops import process_reward as module
from minirlhf.loops import step_labels
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.pretrain import new_gpt2
from minirlhf.loops.process_reward import PRMConfig, train_prm
from minirlhf.loops.step_labels import continuation_labels
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.models.steps import step_end_ids, step_logits
from minirlhf.rewards import process_score, right_answer
from minirlhf.runtime import seed_all
from minirlhf.tasks.arithmetic import step_tokenizer

TOKENIZER = step_tokenizer()
EOS = TOKENIZER.eos_token_id
END = "<|endoftext|>"
ROWS = [
    {"prompt": "8+5-6=", "completions": ["13-6", "7"], "labels": [1.0, 1.0]},
    {"prompt": "8+5-6=", "completions": ["14-6", "8"], "labels": [0.0, 0.0]},
    {"prompt": "9-4=", "completions": ["5"], "labels": [0.5]},
]


def policy(seed=0, width=16):
    torch.manual_seed(seed)
    return new_gpt2(TOKENIZER, layers=1, width=width, heads=2, positions=64)


def config_of(**given):
    usual = {"step_end": "=", "batch_size": 3, "steps": 3, "max_response": 16}
    return PRMConfig(**usual | {"optimiser": OptimiserConfig.plain(lr=1e-2)} | given)


def drawn(*texts):
    """Rollout of these responses; END is an EOS that was sampled."""
    rows = [TOKENIZER(text).input_ids for text in texts]
    width = max(map(len, rows))
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    ids = torch.tensor([row + [EOS] * (width - len(row)) for row in rows])
    return ids, mask


def test_labels_from_continuations_by_hand(monkeypatch):
    """Two continuations of each step that is not the last; one of three is right."""
    prompts = ["8+5-6=", "9-4=", "1+1="]
    batch = encode(TOKENIZER, prompts, ["", "", ""])
    ids, mask = drawn("13-6=7" + END, "5" + END, "1=1=")
    batch = Rollout(batch.prompt_ids, batch.prompt_mask, ids, mask, torch.zeros(mask.shape))
    asked = []

    def sample(model, prompt_ids, prompt_mask, *, samples_per_prompt, **_):
        asked.append([TOKENIZER.decode(i[m]) for i, m in zip(prompt_ids, prompt_mask, strict=True)])
        ids, mask = drawn("7" + END, "9" + END)
        copies = [x.repeat_interleave(samples_per_prompt, 0) for x in (prompt_ids, prompt_mask)]
        return Rollout(*copies, ids, mask, torch.zeros(mask.shape))

    monkeypatch.setattr(step_labels, "sample", sample)
    settings = {"step_end": "=", "count": 2}
    for hard, label in ((False, 0.5), (True, 1.0)):
        rows = continuation_labels(
            policy(), TOKENIZER, prompts, batch, right_answer, hard=hard, **settings
        )
        assert rows[:] == {
            "prompt": prompts[:2],  # the third was cut off
            "completions": [["13-6", "7"], ["5"]],
            "labels": [[label, 1.0], [1.0]],
        }
    assert asked == [["8+5-6=13-6="]] * 2


def labelled(monkeypatch, prompts, texts, continue_with, **given):
    """continuation_labels of these responses; `continue_with`: the text of a row -> what follows.

    The fake of `sample` writes as many tokens of that as it may, and an EOS at its end.
    """
    batch = encode(TOKENIZER, prompts, [""] * len(prompts))
    ids, mask = drawn(*texts)
    batch = Rollout(batch.prompt_ids, batch.prompt_mask, ids, mask, torch.zeros(mask.shape))

    def sample(model, prompt_ids, prompt_mask, *, config, samples_per_prompt, **_):
        prompt_ids, prompt_mask = (
            x.repeat_interleave(samples_per_prompt, 0) for x in (prompt_ids, prompt_mask)
        )
        read = [TOKENIZER.decode(i[m]) for i, m in zip(prompt_ids, prompt_mask, strict=True)]
        rows = [TOKENIZER(continue_with(t) + END).input_ids[: config.max_new_tokens] for t in read]
        ids, mask = drawn(*map(TOKENIZER.decode, rows))
        assert prompt_ids.shape[1] + ids.shape[1] <= 64  # the positions of the model
        return Rollout(prompt_ids, prompt_mask, ids, mask, torch.zeros(mask.shape))

    monkeypatch.setattr(step_labels, "sample", sample)
    settings = {"step_end": "=", "count": 2} | given
    return continuation_labels(policy(), TOKENIZER, prompts, batch, right_answer, **settings)


def test_responses_without_a_step_to_continue_are_labelled(monkeypatch):
    rows = labelled(monkeypatch, ["9-4=", "1+1="], ["5" + END, "1=1="], lambda text: "")
    assert rows[:] == {"prompt": ["9-4="], "completions": [["5"]], "labels": [[1.0]]}
    assert len(labelled(monkeypatch, ["1+1="], ["1=1"], lambda text: "")) == 0  # all were cut


@pytest.mark.parametrize("long", ["9+" * 27 + "9=1", "9+" * 28 + "=1"])
def test_a_label_does_not_depend_on_how_long_other_responses_are(long, monkeypatch):
    """Beside a response of 60 tokens the short one has room for its whole answer, 26 tokens."""
    answer = "14-7=" * 5 + "7"

    def rest(text):
        before, _, written = text.partition("8+5-6=13-6=")
        return "1" if before else answer.removeprefix(written)

    rows = labelled(monkeypatch, ["8+5-6=", "9-9="], ["13-6=7" + END, long + END], rest)
    assert rows["labels"][0] == [1.0, 1.0]


def test_the_ends_of_steps_that_come_twice_are_no_part_of_a_step(monkeypatch):
    told = []
    texts = ["13-6==7" + END, "=13-6=7" + END, "13-6==" + END, "5=1" + END]
    rows = labelled(monkeypatch, ["8+5-6="] * 4, texts, lambda text: "7", say=told.append)
    assert rows["completions"] == [["13-6", "7"], ["13-6", ""], ["5", "1"]]
    assert rows["labels"][0] == [1.0, 1.0]
    assert told == [
        "Left out: 1 of 4 finished responses. The first: Response 2, step 1 is ''; a step must "
        "have text, without '=', which ends a step (--step-end; step_end)."
    ]
    train_prm(policy().base_model, TOKENIZER, rows, config_of(steps=1))


def test_logits_are_read_at_the_ends_of_steps():
    model = ScalarModel(policy().base_model).eval()
    ends = step_end_ids(policy(), TOKENIZER, "=")
    batch = encode(TOKENIZER, ["8+5-6=", "9-4="], ["13-6=7", "5"])
    logits, mask = step_logits(model, batch, ends)
    every = token_scores(model, batch)[:, batch.prompt_ids.shape[1] :]
    assert mask.tolist() == [[True, True], [True, False]]
    assert torch.equal(logits[0], every[0, [4, 6]]) and logits[1, 0] == every[1, 1]
    # later tokens change nothing
    short, _ = step_logits(model, encode(TOKENIZER, ["8+5-6="], ["13-6=99"]), ends)
    assert short[0, 0].item() == pytest.approx(logits[0, 0].item(), abs=1e-6)


def test_the_last_token_of_a_cut_response_ends_its_last_step():
    model = ScalarModel(policy().base_model).eval()
    ends = step_end_ids(policy(), TOKENIZER, "=")
    batch = encode(TOKENIZER, ["8+5-6="], ["13-6=7"], append_eos=False)
    logits, mask = step_logits(model, batch, ends)
    assert mask.tolist() == [[True, True]]
    scores = process_score(model, ends, how="product")(batch)
    assert scores.item() == pytest.approx(logits.sigmoid().log().sum().item(), abs=1e-5)
    smallest = process_score(model, ends, how="min")(batch)
    assert smallest.item() == pytest.approx(logits.sigmoid().log().min().item(), abs=1e-5)


def test_one_step_of_the_loop_equals_the_formula():
    backbone = policy().base_model
    _, history = train_prm(copy.deepcopy(backbone), TOKENIZER, Dataset.from_list(ROWS), config_of())
    seed_all(0)
    model = ScalarModel(backbone).eval()
    batch = encode(TOKENIZER, [row["prompt"] for row in ROWS], ["13-6=7", "14-6=8", "5"])
    logits, mask = step_logits(model, batch, step_end_ids(policy(), TOKENIZER, "="))
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, 0.0]])
    loss = process_reward_loss(logits, labels, mask).sum() / 5
    loss.backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    assert history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert history[0]["grad_norm"] == pytest.approx(sum(squares).sqrt().item(), rel=1e-4)
    right = ((logits > 0) == (labels > 0.5))[mask].float().mean()
    assert history[0]["right"] == pytest.approx(right.item())


def test_a_step_that_nobody_rated_has_no_loss():
    rated = [ROWS[0] | {"labels": [1.0, None]}, ROWS[1], ROWS[2]]
    other = [ROWS[0] | {"completions": ["13-6", "99"], "labels": [1.0, None]}, ROWS[1], ROWS[2]]
    losses = [
        train_prm(policy().base_model, TOKENIZER, Dataset.from_list(rows), config_of(steps=1))[1]
        for rows in (rated, other)
    ]
    assert losses[0][0]["loss"] == pytest.approx(losses[1][0]["loss"], rel=1e-6)
    all_rated = train_prm(
        policy().base_model, TOKENIZER, Dataset.from_list(ROWS), config_of(steps=1)
    )
    assert all_rated[1][0]["loss"] != pytest.approx(losses[0][0]["loss"], rel=1e-3)


def found(seed, *, shuffled):
    """The share of steps with the digit 1 that a PRM tells from the others, in new responses."""
    draw = random.Random(seed)

    def some(count):
        rows = []
        for _ in range(count):
            steps = [draw.choice("123456789") for _ in range(draw.randint(1, 4))]
            rows.append({"completions": steps, "labels": [float(step == "1") for step in steps]})
        return [{"prompt": "1+1="} | row for row in rows]

    rows, held_out = some(200), some(100)
    if shuffled:
        labels = [label for row in rows for label in row["labels"]]
        draw.shuffle(labels)
        rows = [row | {"labels": [labels.pop() for _ in row["labels"]]} for row in rows]
    model, _ = train_prm(
        policy(seed).base_model,
        TOKENIZER,
        Dataset.from_list(rows),
        config_of(steps=120, batch_size=32, optimiser=OptimiserConfig.plain(lr=1e-2), seed=seed),
    )
    batch = encode(TOKENIZER, ["1+1="] * 100, ["=".join(row["completions"]) for row in held_out])
    logits, mask = step_logits(model, batch, step_end_ids(policy(), TOKENIZER, "="))
    labels = torch.tensor([label for row in held_out for label in row["labels"]])
    # the share of pairs (a step with a 1, another) in which the first has the larger logit
    ones, others = logits[mask][labels == 1], logits[mask][labels == 0]
    return (ones[:, None] > others).float().mean().item()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_prm_learns_its_labels_and_shuffled_labels_teach_nothing(seed):
    assert found(seed, shuffled=False) > 0.95
    assert found(seed, shuffled=True) < 0.8


def test_a_run_resumes_bit_for_bit(tmp_path):
    def run(checkpoint=None, stop=None):
        def on_step(row):
            if row["step"] == stop:
                raise KeyboardInterrupt

        rows = Dataset.from_list(ROWS)
        return train_prm(
            policy().base_model,
            TOKENIZER,
            rows,
            config_of(),
            on_step=on_step,
            checkpoint=checkpoint,
        )[0]

    whole, file = run(), tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Checkpoint(file, every=0), stop=1)
    again = run(Checkpoint(file, every=0, resume=True))
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"labels": [1.0]}, "Row 2 has 2 steps in completions and 1 labels"),
        ({"labels": [1.0, -1.0]}, "Row 2, step 2: the label is -1.0"),
        ({"labels": [1.0, float("nan")]}, "Row 2, step 2: the label is nan"),
        ({"completions": ["13-6=7", "7"]}, "Row 2, step 1 is '13-6=7'"),
        ({"completions": ["", "7"]}, "Row 2, step 1 is ''"),
        ({"completions": []}, "Row 2: completions is"),
        ({"completions": None}, "Row 2: completions is None"),
        ({"labels": None}, "Row 2: labels is None"),
        ({"completions": ["1+" * 12, "7"]}, "Row 2: the response has 27 tokens"),
        ({"prompt": ""}, "Row 2: the prompt is empty"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(row, words):
    rows = Dataset.from_list([ROWS[0], ROWS[1] | row])
    with pytest.raises(ValueError, match=re.escape(words)):
        train_prm(policy().base_model, TOKENIZER, rows, config_of())


def test_a_step_end_that_the_tokenizer_writes_together_with_the_next_step_is_refused():
    tokenizer = step_tokenizer()
    ends = step_end_ids(policy(), tokenizer, "=")
    assert len(ends) == 2
    row = {"prompt": "1+1=", "completion": "1=2", "labels": [1.0] * 3}
    with pytest.raises(ValueError, match="Row 1 has 3 steps, but 2 as tokens"):
        module._check_tokens_of(row, "Row 1", tokenizer, ends, config_of())
