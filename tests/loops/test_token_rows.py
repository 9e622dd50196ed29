"""Rows as tokens are checked before the first step: what is refused, left out and reported."""

import logging

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerFast

from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.lengths import row_lengths
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.rows import check_tokens, fit_rows
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.loops.verifier import train_verifier
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.rewards.model import rollout_score
from minirlhf.tasks import arithmetic
from tests.tiny import EOS, tiny_policy, tiny_tokenizer

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
LONG = PAIR | {"prompt": "x" * 61}  # 61 + 2 tokens fit into 64 positions; with 4 more they do not


def rows(*given):
    return Dataset.from_list(list(given))


def checked(*given, **settings):
    return fit_rows(rows(*given), tiny_tokenizer(), tiny_policy(), **settings)


@pytest.mark.parametrize(
    "row, settings, said",
    [
        (
            PAIR | {"prompt": "x" * 63},
            {},
            "a sequence of 65 tokens, EOS included, exceeds the 64 positions of the model; leave",
        ),
        (LONG, {"max_new_tokens": 3}, "a sequence of 65 tokens, EOS included, exceeds the 64"),
        (
            PAIR | {"chosen": "abcde 1", "rejected": "abcde 2"},
            {"max_response": 5},
            "chosen and rejected are the same tokens after the cut at max_response; raise",
        ),
        (
            PAIR | {"chosen": f"b{EOS}", "rejected": "b"},
            {},
            "chosen and rejected are the same tokens; their texts differ only in what",
        ),
    ],
)
def test_a_row_that_is_of_no_use_as_tokens_is_refused_or_left_out(row, settings, said):
    with pytest.raises(ValueError) as error:
        checked(PAIR, row, PAIR, row, **settings)
    assert str(error.value).startswith("Rows 2, 4 (2 of 4): " + said)
    kept, report = checked(PAIR, row, PAIR, row, **settings, skip_invalid=True)
    assert kept.to_list() == [PAIR, PAIR] and list(report.dropped.values()) == [[1, 3]]
    assert str(report).startswith("2 of 4 rows are kept; left out: ")


def test_long_prompts_are_left_out_on_demand_and_cuts_are_reported():
    kept, report = checked(PAIR, LONG, PAIR | {"chosen": "bbbb"}, max_prompt=60, max_response=3)
    assert kept["prompt"][:] == ["a", "a"] and report.cut == [2]
    assert str(report) == (
        "2 of 3 rows are kept; left out: the prompt has more than max_prompt tokens (row 2).\n"
        "Cut: 1 of 2 rows have a response of more tokens than --max-response 3 (max_response), so "
        "its end is not read (row 3); --max-response 5 cuts none.\n"
        f"Row 1 as the model reads it: prompt 'a'; chosen 'b{EOS}'; rejected 'c{EOS}'."
    )
    with pytest.raises(ValueError, match="^No row is left to train on: 0 of 1 rows are kept.*\\.$"):
        checked(LONG, max_prompt=60)
    with pytest.raises(ValueError, match="max_prompt is 0; it must be at least 1"):
        checked(PAIR, max_prompt=0)


def test_the_report_shows_the_first_row_that_is_kept_as_the_model_reads_it():
    first = PAIR | {"prompt": "x" * 500 + "\n", "chosen": "b\tc", "rejected": "d" * 9}
    given = rows(PAIR | {"prompt": "x" * 600}, first)
    settings = {"max_response": 5, "max_prompt": 510}
    _, report = fit_rows(given, tiny_tokenizer(), tiny_policy(positions=520), **settings)
    assert report.example == (
        f"Row 2 as the model reads it: prompt '{'x' * 100} ... {'x' * 99}\\n'; chosen 'b\\tc{EOS}'; "
        "rejected 'ddddd'."
    )
    talk = {"prompt": "q", "completion": f"a{EOS}[u]r[a]b", "completion_spans": [[0, 14], [21, 22]]}
    _, report = fit_rows(rows(talk), tiny_tokenizer(), tiny_policy())
    assert report.example.endswith(f"; of which the assistant wrote 'a{EOS}', 'b{EOS}'.")


def test_transformers_does_not_warn_of_long_texts(caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 3
    logger = logging.getLogger("transformers.tokenization_utils_base")
    logger.addHandler(caplog.handler)
    try:
        fit_rows(rows(PAIR | {"prompt": "x" * 9}), tokenizer, tiny_policy())
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_special_tokens_and_empty_responses_are_reported():
    _, report = checked(PAIR, PAIR | {"prompt": f"what is {EOS}?"}, PAIR | {"rejected": ""})
    assert (report.as_text, report.empty, report.cut) == ([1], [2], [])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}{{ eos_token }}"
    given = rows(PAIR, PAIR | {"prompt": f"q{EOS}r"})
    _, report = fit_rows(given, tokenizer, tiny_policy())
    assert (report.as_text, report.as_tokens) == ([], [1])
    with pytest.raises(ValueError, match="Row 1 .1 of 1.: the end token stands inside a response"):
        fit_rows(rows(PAIR | {"chosen": f"b{EOS}more"}), tokenizer, tiny_policy())
    with pytest.warns(UserWarning, match="written in row 2 and are read as text"):
        check_tokens(["a", f"b{EOS}c"], tiny_tokenizer(), tiny_policy())


def test_characters_that_become_the_end_token_are_refused():
    tokenizer = arithmetic.step_tokenizer()  # its unknown token is EOS
    good = {"prompt": "1+1=", "completion": "2"}
    for row in ({"prompt": "1+1=", "completion": "é"}, {"prompt": "1é=", "completion": "2"}):
        with pytest.raises(ValueError, match="Row 2 .1 of 2.: a text has characters that the"):
            fit_rows(rows(good, row), tokenizer, tiny_policy())


def test_the_loss_of_shifted_prompts_needs_room_for_any_prompt_and_response():
    long_prompt = {"prompt": "x" * 60, "completion": "y", "label": True}
    long_response = {"prompt": "x", "completion": "y" * 20, "label": False}
    given = rows(long_prompt, long_response)
    assert fit_rows(given, tiny_tokenizer(), tiny_policy())[1].kept == 2
    with pytest.raises(ValueError, match="Row 1 .1 of 2.: a sequence of 81 tokens"):
        fit_rows(given, tiny_tokenizer(), tiny_policy(), shifted=True)


PROMPTS = [*["a"] * 71, "x" * 61]


@pytest.mark.parametrize(
    "train",
    [
        lambda: train_sft(tiny_policy(), tiny_tokenizer(), rows(*[{"prompt": "a", "completion": "b"}] * 71, {"prompt": "x" * 63, "completion": "b"}), SFTConfig()),
        lambda: train_dpo(tiny_policy(), tiny_tokenizer(), rows(*[PAIR] * 71, PAIR | {"prompt": "x" * 63}), DPOConfig()),
        lambda: train_reward_model(tiny_policy().base_model, tiny_tokenizer(), rows(*[PAIR] * 71, PAIR | {"prompt": "x" * 63}), RewardConfig()),
        lambda: train_verifier(tiny_policy().base_model, tiny_tokenizer(), rows(*[{"prompt": "a", "completion": "b", "label": True}] * 71, {"prompt": "x" * 63, "completion": "b", "label": True})),
        lambda: train_ppo(tiny_policy(), ScalarModel(tiny_policy(1).base_model), tiny_tokenizer(), PROMPTS, None, PPOConfig()),
        lambda: train_group(tiny_policy(), tiny_tokenizer(), PROMPTS, None, GroupConfig()),
        lambda: train_online(tiny_policy(), tiny_tokenizer(), PROMPTS, None, OnlineConfig()),
    ],
    ids=["sft", "dpo", "reward", "verifier", "ppo", "group", "online"],
)  # fmt: skip
def test_every_loop_refuses_one_long_prompt_among_many_before_its_first_step(train):
    with pytest.raises(ValueError, match="Row 72 .1 of 72.: a sequence of .* exceeds the 64"):
        train()


def scalar(**given):
    return ScalarModel(tiny_policy(1, **given).base_model)


ASKED = [*["a"] * 20, "x" * 30]


@pytest.mark.parametrize(
    "train, reader",
    [
        (lambda r: train_ppo(tiny_policy(), scalar(**r), tiny_tokenizer(), ASKED, any), "critic"),
        (lambda r: train_ppo(tiny_policy(), scalar(), tiny_tokenizer(), ASKED, rollout_score(scalar(**r), 0)), "reward model"),
        (lambda r: train_ppo(tiny_policy(), scalar(), tiny_tokenizer(), ASKED, any, reference=tiny_policy(**r)), "reference"),
        (lambda r: train_group(tiny_policy(), tiny_tokenizer(), ASKED, rollout_score(scalar(**r), 0)), "reward model"),
        (lambda r: train_group(tiny_policy(), tiny_tokenizer(), ASKED, any, reference=tiny_policy(**r)), "reference"),
        (lambda r: train_online(tiny_policy(), tiny_tokenizer(), ASKED, rollout_score(scalar(**r), 0)), "reward model"),
        (lambda r: train_online(tiny_policy(), tiny_tokenizer(), ASKED, any, reference=tiny_policy(**r)), "reference"),
        (lambda r: train_dpo(tiny_policy(), tiny_tokenizer(), rows(*[PAIR] * 20, PAIR | {"prompt": "x" * 47}), reference=tiny_policy(**r)), "reference"),
    ],
)  # fmt: skip
def test_every_model_that_reads_a_batch_is_checked_before_the_first_step(train, reader):
    with pytest.raises(
        ValueError, match=f"Row 21 .1 of 21.: .* exceeds the 48 .* of the {reader};"
    ):
        train({"positions": 48})
    with pytest.raises(ValueError, match="The tokenizer has ids up to 256 .* 200 rows"):
        train({"vocab_size": 200})


@pytest.mark.parametrize("limits", [{"max_prompt": 1}, {"max_response": 1, "max_new_tokens": 63}])
def test_that_no_row_is_left_is_one_line(limits):
    long = PAIR | {"prompt": "abc", "chosen": "x" * 60}
    with pytest.raises(ValueError) as error:
        checked(long, skip_invalid=True, **limits)
    said = str(error.value)
    assert said.startswith("No row is left to train on: 0 of 1 rows are kept; left out: ")
    assert "\n" not in said and "of 0 rows" not in said


@pytest.mark.parametrize("config", [DPOConfig, RewardConfig, SFTConfig])
def test_a_response_is_read_to_its_first_token_at_least(config):
    with pytest.raises(ValueError, match="max_response is 0; it must be at least 1"):
        config(max_response=0)
    with pytest.raises(ValueError, match="max_response is 0; it must be at least 1"):
        checked(PAIR, max_response=0)


def test_a_prompt_without_tokens_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace("b", "")
    with pytest.raises(ValueError, match="Row 2 .1 of 2.: the prompt has no tokens; give at least"):
        train_group(tiny_policy(), tokenizer, ["a", "bb"], any)
    with pytest.raises(ValueError, match="Prompt 2 is 'None', of type NoneType; it must be text"):
        check_tokens(["a", None], tokenizer, tiny_policy())


@pytest.mark.parametrize("name", ["completion", "chosen", "rejected"])
def test_a_row_whose_learned_turns_lie_behind_the_cut_is_refused(name):
    late = {"prompt": "p", name: "abcdef", f"{name}_spans": [[4, 6]]}
    other = {"chosen": "rejected", "rejected": "chosen"}.get(name)
    late |= {other: "gh"} if other else {}
    with pytest.raises(ValueError) as error:
        checked(late, max_response=4)
    assert str(error.value) == (
        "Row 1 (1 of 1): no learned token is left after the cut at max_response; raise "
        "--max-response (max_response) into the first turn that is learned, or leave the row out."
    )
    assert checked(late, max_response=5)[1].cut == [0]
    kept, report = checked(late, late | {f"{name}_spans": None}, max_response=4, skip_invalid=True)
    assert len(kept) == 1 and [*report.dropped.values()] == [[0]]


PARTS = {"prompt": "p", "completion": "abcdef", "completion_spans": [[0, 2], [5, 6]]}
OWN = torch.tensor([True, True, False, False, False, True, True])


def logprobs_of(prompt, response):
    batch = encode(tiny_tokenizer(), [prompt], [response])
    return policy_logprobs(tiny_policy(), batch)[0].detach()


def test_sft_learns_the_turns_of_the_assistant_only():
    def first_loss(row):
        config = SFTConfig.plain(batch_size=1, epochs=1)
        return train_sft(tiny_policy(), tiny_tokenizer(), rows(row), config)[1][0]["loss"]

    logprobs = logprobs_of("p", "abcdef")
    assert first_loss(PARTS) == pytest.approx(-logprobs[OWN].mean().item(), abs=1e-5)
    whole = PARTS | {"completion_spans": None}
    assert first_loss(whole) == pytest.approx(-logprobs.mean().item(), abs=1e-5)


@pytest.mark.parametrize("micro_batch", [0, 1])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_preference_losses_count_the_turns_of_the_assistant_only(loss, micro_batch):
    pair = {"prompt": "p", "chosen": "abcdef", "rejected": "xy"}
    data = rows(pair | {"chosen_spans": [[0, 2], [5, 6]]}, pair | {"chosen": "gh"})
    config = DPOConfig(
        loss, steps=1, batch_size=2, optimiser=OptimiserConfig(micro_batch=micro_batch)
    )
    _, history = train_dpo(tiny_policy(), tiny_tokenizer(), data, config)
    chosen = [logprobs_of("p", "abcdef")[OWN].sum(), logprobs_of("p", "gh").sum()]
    assert history[0]["logps/chosen"] == pytest.approx(sum(chosen).item() / 2, abs=1e-4)


def test_a_reward_model_reads_all_turns():
    pair = {"prompt": "p", "chosen": "abcdef", "rejected": "xy", "chosen_spans": [[0, 2], [5, 6]]}
    config = RewardConfig.plain(steps=1, batch_size=2)
    losses = [
        train_reward_model(tiny_policy().base_model, tiny_tokenizer(), rows(row), config)[1][0]
        for row in (pair, pair | {"chosen_spans": None})
    ]
    assert losses[0]["loss"] == losses[1]["loss"]


@pytest.mark.parametrize(
    "chosen, rejected", [("good one", "good two"), ("good ", "good"), (" \n", ""), ("a [?]", "a ?")]
)
def test_texts_that_the_tokenizer_does_not_tell_apart_are_no_pair(chosen, rejected):
    vocabulary = {"[END]": 0, "[?]": 1, "a": 2, "good": 3}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[?]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[END]", unk_token="[?]")
    pair = {"prompt": "a", "chosen": chosen, "rejected": rejected}
    with pytest.raises(ValueError, match="Row 1 .1 of 1.: chosen and rejected are the same tokens"):
        fit_rows(rows(pair), tokenizer, tiny_policy())
    _, report = fit_rows(rows(pair | {"rejected": "a a"}), tokenizer, tiny_policy())
    assert report.unknown == ([0] if "one" in chosen else [])


def test_cut_responses_are_said_with_the_limit_that_would_cut_none():
    rows = Dataset.from_list(
        [{"prompt": "p", "completion": "a" * (9 if i == 0 else 2)} for i in range(3)]
    )
    given = (tiny_tokenizer(), tiny_policy())
    _, report = fit_rows(rows, *given, max_response=5)
    assert report.cut == [0] and report.longest == 10
    said = (
        "Cut: 1 of 3 rows have a response of more tokens than --max-response 5 (max_response), so "
        "its end is not read (row 1); --max-response 10 cuts none."
    )
    assert said in str(report)
    assert fit_rows(rows, *given, max_response=10)[1].cut == []
    assert fit_rows(rows, *given, max_response=9)[1].cut == [0]
    check_tokens(rows, *given, max_response=5)  # a third: no warning
    with pytest.warns(UserWarning, match="Cut: 1 of 2 rows have a response"):
        check_tokens(rows.select([0, 1]), *given, max_response=5)


def test_where_the_model_is_too_short_no_limit_that_cuts_none_is_named():
    rows = Dataset.from_list([{"prompt": "p" * n, "completion": "a" * 40} for n in (5, 23, 24)])
    _, report = fit_rows(rows, tiny_tokenizer(), tiny_policy(), max_response=5)
    assert report.too_long == [2]  # 24 + 41 tokens of 64
    assert report.cuts_none == (
        "the longest has 41, and whole responses do not fit into the 64 positions of the model "
        "(row 3)"
    )
    _, report = fit_rows(rows, tiny_tokenizer(), tiny_policy(), max_response=5, max_prompt=23)
    assert report.cuts_none == "--max-response 41 cuts none"


def test_the_lengths_of_rows_name_the_smallest_limits_that_change_none():
    rows = Dataset.from_list(
        [{"prompt": "p" * n, "chosen": "a" * n, "rejected": "b"} for n in (1, 2, 3, 30, 32)]
    )
    given = (rows, tiny_tokenizer(), tiny_policy())
    found = row_lengths(*given, max_response=4)
    assert list(found.loc["prompts"].fillna(-1)) == [3, 31.6, 32, -1, 0, 32]
    # 32 + 33 tokens do not fit into 64 positions
    # ten responses of 2, 2, 2, 2, 2, 2, 3, 4, 31, 33 tokens: 0.95 * 9 = 8.55, so 31 + 0.55 * 2
    assert list(found.loc["responses"].fillna(-1)) == pytest.approx([2, 32.1, 33, 4, 2, -1])
    found = row_lengths(*given, max_response=4, max_prompt=31)
    assert list(found.loc["prompts"]) == [3, 31.6, 32, 31, 1, 32]
    # eight: 0.95 * 7 = 6.65, so 4 + 0.65 * 27
    assert list(found.loc["responses"]) == pytest.approx([2, 21.55, 31, 4, 1, 31])
    _, report = fit_rows(*given, max_response=31, max_prompt=31)
    assert report.cut == [] and report.kept == 4
    assert list(row_lengths(*given, responses=()).index) == ["prompts"]
