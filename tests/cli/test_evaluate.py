"""minirlhf evaluate: two models on the same prompts, and how well pairs are predicted."""

import json
import shutil

import pandas as pd
import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

from minirlhf import cli, evaluate
from minirlhf.cli import evaluation, evaluation_tables
from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.loops import preference
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import save_policy
from minirlhf.models.sampling import SamplingConfig
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.model import text_judge
from tests.tasks.test_formats import chat_tokenizer
from tests.tiny import ending_policy, tiny_policy, tiny_tokenizer

PROMPTS = [{"question": f"q{i} ", "letter": "ab"[i % 2]} for i in range(6)]
PAIRS = [
    {"prompt": "p ", "chosen": "aaa", "rejected": "b"},
    {"prompt": "q ", "chosen": "a", "rejected": "bbb"},
    {"prompt": "r ", "chosen": "ab", "rejected": "ba"},
]
REWARD = """
def reward(completions, letter, **columns):
    return [float(text.count(each)) for text, each in zip(completions, letter)]
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with two policies and a reward model."""
    folder = tmp_path_factory.mktemp("models")
    save_policy(ending_policy(), tiny_tokenizer(), folder / "new")
    save_policy(tiny_policy(1), tiny_tokenizer(), folder / "old")
    torch.manual_seed(0)
    ScalarModel(tiny_policy().base_model).save(folder / "judge", tiny_tokenizer())
    return folder


@pytest.fixture
def tiny(models, tmp_path, monkeypatch):
    """The models, held-out prompts and pairs, and a reward, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    for name, rows in (("heldout", PROMPTS), ("pairs", PAIRS)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


def said(*given):
    result = CliRunner().invoke(cli.app, ["evaluate", *map(str, given)])
    assert result.exit_code == 0, (result.output, repr(result.exception))
    return " ".join(result.output.split())


def refused(*given):
    error = CliRunner().invoke(cli.app, ["evaluate", *map(str, given)]).exception
    assert isinstance(error, ValueError), error
    return " ".join([str(error), *getattr(error, "__notes__", [])])


def frame(rows):
    """Scored responses: rows of (row, prompt, response, score, kl, length, finished)."""
    names = ["row", "prompt", "response", "score", "kl", "length", "finished"]
    return pd.DataFrame(rows, columns=names)


NEW = frame(
    [
        (0, "p", "a good a good", 3.0, 1.0, 4, True),
        (0, "p", "a good b", 1.0, 2.0, 3, True),  # mean of p: 2
        (1, "q", "a good c", 0.3, 0.0, 3, False),
        (1, "q", "a good d", 0.0, 1.0, 2, True),  # mean of q: 0.15
        (2, "r", "x", 5.0, 2.0, 1, True),
        (2, "r", "y", 5.0, 0.0, 1, True),  # mean of r: 5
    ]
)
OLD = frame(
    [
        (0, "p", "u", 1.0, float("nan"), 1, True),
        (0, "p", "v", 1.0, float("nan"), 1, True),  # 1: new is above by 1
        (1, "q", "w", 0.0, float("nan"), 1, True),
        (1, "q", "x", 0.3, float("nan"), 1, True),  # 0.15: a tie
        (2, "r", "y", 7.0, float("nan"), 1, True),
        (2, "r", "z", 7.0, float("nan"), 1, True),  # 7: new is below by 2
    ]
)


def test_a_table_by_hand():
    new, old = evaluate.compare(NEW, OLD).to_dict("records")
    assert (new["prompts"], new["responses"]) == (3, 6)
    assert new["score"] == pytest.approx(7.15 / 3) and old["score"] == pytest.approx(8.15 / 3)
    assert new["difference"] == pytest.approx(-1 / 3)
    assert new["win_rate"] == 0.5  # (1 + 1/2 + 0) / 3
    assert new["kl"] == 1.0 and pd.isna(old["kl"])
    assert new["length"] == pytest.approx(14 / 6) and new["missing_eos"] == pytest.approx(1 / 6)
    # a good, good a, a good | a good, good b | a good, good c | a good, good d: 5 of 9
    assert new["distinct_2"] == 5 / 9
    assert new["opening_share"] == pytest.approx(1 / 6) and new["opening"] == "a good a good"
    assert evaluate.verdict(evaluate.compare(NEW, OLD)) == "no difference seen"


def test_the_intervals_are_the_bootstrap_over_prompts_and_of_the_paired_differences():
    table = evaluate.compare(NEW, OLD, bootstrap_seed=3)
    means = torch.tensor([[2, 0.15, 5], [1, 0.15, 7]], dtype=torch.float64)
    for name, values in (
        ("score", means[0]),
        ("difference", means[0] - means[1]),
        ("win_rate", torch.tensor([1, 0.5, 0], dtype=torch.float64)),
    ):
        found = (table[f"{name}_low"][0], table[f"{name}_high"][0])
        assert found == pytest.approx(evaluate.bootstrap(values, seed=3)), name


def test_the_same_scores_in_another_order_are_a_tie():
    # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in their last bits
    def of(*scores):
        return frame([(r, f"p{r}", "x", s, 0.0, 1, True) for r in (0, 1) for s in scores])

    table = evaluate.compare(of(0.1, 0.2, 0.3), of(0.3, 0.2, 0.1))
    assert table.win_rate[0] == 0.5 and table.difference[0] == 0


@pytest.mark.parametrize(
    "shift, verdict", [(1.0, "better"), (-1.0, "worse"), (0.0, "no difference seen")]
)
def test_the_verdict_follows_the_interval_of_the_difference(shift, verdict):
    table = evaluate.compare(OLD.assign(score=OLD.score + shift), OLD)
    assert evaluate.verdict(table) == verdict
    sentence = evaluation_tables.sentence(table, "n", "o")
    said = {1.0: "n scores higher than o", -1.0: "n scores lower than o"}
    assert said.get(shift, "no difference seen between n and o") in sentence


def test_rows_with_the_same_prompt_count_as_one_prompt():
    table = evaluate.compare(NEW.assign(prompt=["p"] * 4 + ["r"] * 2), OLD)
    # p: (3 + 1 + 0.3 + 0) / 4 against (1 + 1 + 0 + 0.3) / 4; r: 5 against 7
    assert table.prompts[0] == 2 and table.difference[0] == pytest.approx((0.5 - 2) / 2)
    with pytest.raises(ValueError, match="different prompts is 1; it must be at least 2"):
        evaluate.compare(NEW.assign(prompt="p"), OLD)


def test_scored_responses_are_samples_with_their_scores_and_their_kl():
    model, start, tokenizer = ending_policy(), tiny_policy(1), tiny_tokenizer()
    rows = Dataset.from_list([{"prompt": "p ", "letter": "a"}, {"prompt": "p ", "letter": "b"}])
    count = lambda completions, letter: [
        t.count(s) for t, s in zip(completions, letter, strict=False)
    ]
    given = {"samples_per_prompt": 30, "config": SamplingConfig(20, 1.0), "batch_size": 7}
    score = reward_function(count, tokenizer, rows)
    found = evaluate.scored_responses(
        model, tokenizer, rows["prompt"][:], score, reference=start, **given
    )
    assert found.row.tolist() == [0] * 30 + [1] * 30 and found.finished.any()
    letters = found.row.map({0: "a", 1: "b"})  # of the row, although both have the same prompt
    assert found.score.tolist() == [
        t.count(s) for t, s in zip(found.response, letters, strict=False)
    ]
    assert found.score.sum() > 0
    drawn = evaluate.draw(
        model,
        tokenizer,
        ["p "] * 2,
        samples_per_prompt=30,
        reference=start,
        config=given["config"],
    )
    assert found.kl.mean() == pytest.approx(drawn.kl.mean().item(), rel=0.2)  # other samples
    none = evaluate.scored_responses(model, tokenizer, ["p "], score, samples_per_prompt=1)
    assert none.kl.isna().all()


def test_a_score_that_is_no_number_is_refused_and_names_the_prompt():
    score = reward_function(lambda completions: [None for _ in completions], tiny_tokenizer())
    with pytest.raises(ValueError, match="response to the prompt 'p ' is nan; it must be finite"):
        evaluate.scored_responses(tiny_policy(), tiny_tokenizer(), ["p "], score)


def scored_pairs(*margins):
    rows = [
        {"chosen": m, "rejected": 0.0, "chosen_length": c, "rejected_length": r}
        for m, c, r in margins
    ]
    return pd.DataFrame(rows)


def test_the_accuracy_on_pairs_by_hand():
    # right, wrong, a tie, right; longer chosen: yes, no, no, a tie
    scored = scored_pairs((1.0, 3, 2), (-1.0, 2, 3), (0.0, 1, 2), (2.0, 2, 2))
    ours, length = evaluate.pair_accuracy(scored).to_dict("records")
    assert (ours["by"], ours["accuracy"]) == ("scores", 2.5 / 4)
    assert (length["by"], length["accuracy"]) == ("longer answer", 1.5 / 4)
    right = torch.tensor([1, 0, 0.5, 1], dtype=torch.float64)
    low, high = evaluate.bootstrap(right - torch.tensor([1, 0, 0, 0.5]))
    assert (ours["difference_low"], ours["difference_high"]) == (low, high)
    with pytest.raises(ValueError, match="different pairs is 1; it must be at least 2"):
        evaluate.pair_accuracy(scored[:1])


def test_pairs_are_scored_by_the_reward_model_as_it_reads_texts():
    tokenizer, rows = tiny_tokenizer(), Dataset.from_list(PAIRS)
    model = ScalarModel(tiny_policy().base_model)
    found = evaluate.scored_pairs(rows, tokenizer, reward_model=model, max_response=3)
    judge = text_judge([model], tokenizer, max_response=3)
    for side in ("chosen", "rejected"):
        assert found[side].tolist() == pytest.approx(judge(rows["prompt"][:], rows[side]).tolist())
    assert found.chosen_length.tolist() == [3, 2, 3] and found.rejected_length[0] == 2


def test_the_implicit_reward_of_pairs_has_the_sign_of_dpos_margins():
    new, old, tokenizer = tiny_policy(0), tiny_policy(1), tiny_tokenizer()
    rows = Dataset.from_list(PAIRS)
    found = evaluate.scored_pairs(rows, tokenizer, policy=new, reference=old, batch_size=2)
    batch = encode(tokenizer, rows["prompt"], rows["chosen"])
    with torch.no_grad():
        ours, theirs = (
            sequence_logprobs(policy_logprobs(each, batch), batch.action_mask)
            for each in (new, old)
        )
    assert found.chosen.tolist() == pytest.approx((ours - theirs).tolist(), abs=1e-5)
    config = preference.DPOConfig(beta=0.3, max_response=99)
    log = preference.preference_step(new, old, tokenizer, rows[:], config)
    assert log["rewards/accuracies"].item() == pytest.approx((found.chosen > found.rejected).mean())


def test_only_the_assistants_turns_count_in_the_implicit_reward():
    new, old, tokenizer = tiny_policy(0), tiny_policy(1), tiny_tokenizer()
    row = {"prompt": "p ", "chosen": "abc", "rejected": "abcd"}
    spans = {"chosen_spans": [[0, 1], [2, 3]], "rejected_spans": [[0, 1], [2, 4]]}
    own = evaluate.scored_pairs(
        Dataset.from_list([row | spans]), tokenizer, policy=new, reference=old
    )
    every = evaluate.scored_pairs(Dataset.from_list([row]), tokenizer, policy=new, reference=old)
    batch = encode(tokenizer, ["p "], ["abc"])
    with torch.no_grad():
        ratio = policy_logprobs(new, batch) - policy_logprobs(old, batch)
    assert every.chosen[0] == pytest.approx(ratio.sum().item(), abs=1e-5)
    assert own.chosen[0] == pytest.approx(ratio[0, [0, 2, 3]].sum().item(), abs=1e-5)


@pytest.mark.parametrize("given", [{}, {"policy": 1}, {"reference": 1}, "all"])
def test_a_reward_model_or_both_policies_must_be_given(given):
    model = tiny_policy()
    given = {"reward_model": 1, "policy": 1, "reference": 1} if given == "all" else given
    with pytest.raises(ValueError, match="a reward model alone, or a policy and a reference"):
        evaluate.scored_pairs(Dataset.from_list(PAIRS), None, **dict.fromkeys(given, model))


def test_the_command_prints_the_table_a_verdict_and_samples_and_writes_both_files(tiny):
    given = ["--model", "new", "--base", "old", "--dataset", "heldout.jsonl", "--reward", "mine.py"]
    files = ["--out", "table.csv", "--responses", "all.jsonl"]
    text = said(*given, *files, "--samples", 3, "--max-response", 9, "--temperature", 1)
    assert "Computed: scores of sampled responses (new, old)." in text
    assert "6 prompts, 3 responses to each." in text and "without EOS (cut at 9)" in text
    assert "Verdict: " in text and "With fewer than 20 prompts" in text
    table = pd.read_csv("table.csv")
    drawn = pd.read_json("all.jsonl", lines=True)
    assert list(table.model) == ["new", "base"] and list(table.name) == ["new", "old"]
    parts = [drawn[drawn.model == who].reset_index(drop=True) for who in ("new", "base")]
    again = evaluate.compare(*parts)
    assert again.difference[0] == pytest.approx(table.difference[0], abs=1e-6)
    letters = drawn.row.map(lambda row: PROMPTS[row]["letter"])
    assert drawn.score.tolist() == [
        t.count(s) for t, s in zip(drawn.response, letters, strict=False)
    ]
    assert f"{table.kl[0]:.2f}" in text and drawn.length.max() <= 9
    assert all(f"q{i}" in text for i in range(3))
    assert not [p for p in tiny.iterdir() if p.name.startswith(".")]  # no temporary files


def test_a_model_compared_with_itself_is_no_better(tiny):
    given = ["--model", "old", "--base", "old", "--dataset", "heldout.jsonl", "--scorer", "judge"]
    text = said(*given, "--samples", 2, "--rows", 4)
    assert "no difference seen between old and old" in text
    assert "+0.00 [+0.00, +0.00], contains 0" in text and "0.50 [0.50, 0.50]" in text


def test_one_model_alone_has_no_difference(tiny):
    given = ["--model", "new", "--dataset", "heldout.jsonl", "--scorer", "judge", "--prompts", 3]
    text = said(*given, "--samples", 1)
    assert "mean score" in text and "difference" not in text and "Verdict" not in text


def test_models_with_different_tokenizers_are_compared_without_a_kl(tiny):
    other = tiny_tokenizer()
    other.add_tokens(["qq", "aa"])
    save_policy(tiny_policy(2, vocab_size=259), other, "other")
    given = ["--model", "new", "--base", "other", "--dataset", "heldout.jsonl", "--samples", 2]
    text = said(*given, "--scorer", "judge", "--out", "t.jsonl")
    assert "The KL is left out: the two models have different tokenizers." in text
    assert "6 rows are used: those that all models read." in text
    assert pd.read_json("t.jsonl", lines=True).kl.isna().all()
    assert "have different tokenizers; give two models" in refused(
        "--model", "new", "--base", "other", "--dataset", "pairs.jsonl"
    )


def test_a_row_that_one_model_cannot_read_is_left_out_for_all(tiny):
    other = tiny_tokenizer()
    other.add_tokens(["qq"])
    save_policy(tiny_policy(2, vocab_size=258, positions=16), other, "short")
    rows = [{"question": "x" * 20, "letter": "a"}, *PROMPTS]
    (tiny / "heldout.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["--model", "new", "--base", "short", "--dataset", "heldout.jsonl", "--samples", 1]
    given += ["--reward", "mine.py", "--max-response", 5]
    told = refused(*given)
    assert "row 1 (1 of 7)" in told and "with the tokenizer of the model short." in told
    text = said(*given, "--skip-invalid", "--responses", "r.csv")
    assert "6 rows are used" in text
    drawn = pd.read_csv("r.csv")
    assert set(drawn.prompt) == {row["question"] for row in PROMPTS}
    letters = drawn.row.map(lambda row: PROMPTS[row]["letter"])
    assert drawn.score.tolist() == [
        str(t).count(s) for t, s in zip(drawn.response.fillna(""), letters, strict=False)
    ]


def test_chat_writes_the_prompts_with_the_template_of_the_model(tiny):
    save_policy(tiny_policy(vocab_size=300, positions=128), chat_tokenizer(), "chat")
    given = ["--model", "chat", "--base", "chat", "--dataset", "heldout.jsonl", "--reward"]
    text = said(*given, "mine.py", "--chat", "--samples", 1)
    assert "prompt '<user>q0 <assistant>'" in text
    assert "writes rows of text with the tokenizer's chat template" in refused(
        "--model", "new", *given[2:], "mine.py", "--chat"
    )


def test_the_accuracy_of_a_reward_model_and_of_a_policy(tiny):
    text = said("--scorer", "judge", "--dataset", "pairs.jsonl", "--out", "t.csv")
    assert "Computed: how often the reward model prefers the chosen response" in text
    assert "the longer answer is better" in text and "3 pairs." in text
    length = pd.read_csv("t.csv").accuracy[1]
    assert length == 0.5  # longer, shorter, equal
    text = said("--model", "new", "--base", "old", "--dataset", "pairs.jsonl", "--out", "u.csv")
    assert "how often DPO's implicit reward prefers" in text
    assert pd.read_csv("u.csv").accuracy[1] == length


def test_pairs_of_the_same_score_everywhere_are_ties(tiny):
    given = ["--model", "old", "--base", "old", "--dataset", "pairs.jsonl", "--out", "t.csv"]
    said(*given)
    assert pd.read_csv("t.csv").accuracy[0] == 0.5


M, D, R = ["--model", "new"], ["--dataset", "heldout.jsonl"], ["--reward", "mine.py"]


@pytest.mark.parametrize(
    "given, sentence",
    [
        ([*M, *R], "Give --dataset: a file of held-out prompts or pairs of your own."),
        (D, "There is nothing to compute. Give --model with --scorer or --reward"),
        ([*M, *D], "There is nothing to compute."),
        ([*M, *D, *R, "--scorer", "judge"], "and --reward is a function: leave it out."),
        ([*D, *R], "--reward is 'mine.py', but it works only with --model"),
        ([*D, "--base", "old"], "--base is 'old', but it works only with --model"),
        (["--scorer", "judge", *D, "--samples", "2"], "--samples is 2, but it works only with"),
        (["--scorer", "judge", *D, "--responses", "r.csv"], "--responses is 'r.csv', but it works"),
        (["--scorer", "judge", *D], "For prompts without pairs give --model and one of"),
        ([*M, *D, *R, "--out", "t.txt"], "--out is 't.txt'; it must be a file that ends in .csv"),
        ([*M, *D, *R, "--out", "a.csv", "--responses", "a.csv"], "must be another than --out"),
        ([*M, *D, *R, "--rows", "1"], "The number of different prompts is 1; it must be at least"),
        ([*M, *D, *R, "--max-response", "0"], "max_response is 0; it must be at least 1"),
        ([*M, *D, *R, "--max-response", "90"], "tokens, EOS included, exceeds the 64 positions"),
        ([*M, *D, "--reward", "no.py"], "--reward is 'no.py'; it must be a Python file"),
        ([*M, *D, "--scorer", "new"], "No reward model 'new'"),
        ([*M, "--base", "gone/x", *D, *R], "gone/x"),
        ([*M, "--dataset", "pairs.jsonl", *R], "needs the argument letter"),
    ],
)
def test_what_cannot_be_used_is_refused_before_sampling(given, sentence, tiny, monkeypatch):
    monkeypatch.setattr(evaluate.comparison, "sample", None)
    before = sorted(tiny.iterdir())
    assert sentence in refused(*given)
    assert sorted(tiny.iterdir()) == before


def test_a_file_is_written_whole_or_not_at_all(tiny, monkeypatch):
    (tiny / "t.csv").write_text("old")
    given = ["--scorer", "judge", "--dataset", "pairs.jsonl", "--out", "t.csv"]

    def half(self, path, **_):
        path.write_text("half")
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(pd.DataFrame, "to_csv", half)
        error = CliRunner().invoke(cli.app, ["evaluate", *given]).exception
    assert isinstance(error, OSError) and (tiny / "t.csv").read_text() == "old"
    said(*given)
    assert (tiny / "t.csv").read_text().startswith("by,pairs,accuracy")
    assert not [p for p in tiny.iterdir() if p.name.startswith(".")]


def test_a_full_disk_hides_neither_the_table_nor_the_other_file(tiny, monkeypatch):
    def full(*_, **__):
        raise OSError("the disk is full")

    given = ["--model", "new", "--base", "old", "--dataset", "heldout.jsonl", "--reward", "mine.py"]
    given += ["--samples", 1, "--out", "t.csv", "--responses", "all.jsonl"]
    for broken, kept in (("to_csv", "all.jsonl"), ("to_json", "t.csv")):
        with monkeypatch.context() as disk:
            disk.setattr(pd.DataFrame, broken, full)
            result = CliRunner().invoke(cli.app, ["evaluate", *map(str, given)])
        assert isinstance(result.exception, OSError) and "Verdict: " in result.output
        assert (tiny / kept).exists() and f"Wrote {kept}." in result.output
        (tiny / kept).unlink()
        assert not [p for p in tiny.iterdir() if p.name in ("all.jsonl", "t.csv")]
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    monkeypatch.setattr(pd.DataFrame, "to_json", full)
    error = CliRunner().invoke(cli.app, ["evaluate", *map(str, given)]).exception
    assert "all.jsonl" in str(error) and "t.csv" in error.__notes__[0]


@pytest.mark.parametrize(
    "line",
    [
        "return [1 / (each != 'z') for each in letter]",
        "return [None if each == 'z' else 1.0 for each in letter]",
    ],
)
def test_an_error_about_a_prompt_names_its_row_of_the_file(line, tiny):
    rows = [{"question": f"q{i} ", "letter": "z" if i == 4 else "a"} for i in range(6)]
    rows[1]["question"] = "x" * 70  # left out: later rows are other prompts
    (tiny / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tiny / "mine.py").write_text(f"def reward(completions, letter, **columns):\n    {line}\n")
    given = ["--model", "new", "--dataset", "rows.jsonl", "--reward", "mine.py", "--max-prompt", 9]
    assert refused(*given).endswith(" Prompt 4 is rows.jsonl, row 5.")


def test_an_interval_has_the_digits_that_its_width_asks_for():
    row = lambda *v: pd.Series(dict(zip(("x", "x_low", "x_high"), v, strict=False)))
    assert evaluation_tables.interval(row(1.0, 0.5, 1.5), "x") == "1.00 [0.50, 1.50]"
    assert evaluation_tables.interval(row(0.001, 0.0005, 0.0015), "x", "+") == (
        "+0.0010 [+0.0005, +0.0015]"
    )
    assert evaluation_tables.interval(row(0.0, 0.0, 0.0), "x") == "0.00 [0.00, 0.00]"


def test_the_default_length_and_temperature_are_those_of_sampling():
    assert SamplingConfig() == evaluation.DEFAULT
