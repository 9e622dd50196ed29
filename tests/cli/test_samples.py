"""The commands sample and score say which defaults they use."""

import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import save_policy
from tests.tiny import ending_policy, tiny_policy, tiny_tokenizer


def said(*given):
    result = CliRunner().invoke(cli.app, [*map(str, given)])
    assert result.exit_code == 0, result.exception
    return " ".join(result.output.split())


@pytest.mark.parametrize("own", [True, False])
def test_score_says_which_prompt_it_uses_if_none_is_given(own, tmp_path):
    scorer = []
    if own:
        ScalarModel(tiny_policy().base_model).save(tmp_path / "scorer", tiny_tokenizer())
        scorer = ["--scorer", tmp_path / "scorer"]
    sentence = "The prompt is 'the film'. Give the response's own with --prompt."
    assert sentence in said("score", "good", *scorer)
    assert "The prompt is" not in said("score", "good", *scorer, "--prompt", "the dog")


def test_sample_says_how_it_samples_and_which_responses_are_cut(tmp_path):
    save_policy(ending_policy(), tiny_tokenizer(), tmp_path / "policy")
    given = ["sample", "x", "y", "--model", tmp_path / "policy", "--n", 5, "--seed", 2]
    text = said(*given, "--max-new-tokens", 1)
    assert f"Samples of {tmp_path / 'policy'} at temperature 0.7, with seed 2:" in text
    cut = int(text.split(" of 10 are cut at 1 tokens (--max-new-tokens).")[0].split()[-1])
    assert 0 < cut < 10
    assert "are cut" not in said(*given, "--max-new-tokens", 60)
