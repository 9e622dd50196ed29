"""Every tensor says where it lives: runs whose default device is another one than the model's.

With `torch.device("meta")` as the default device, a tensor that is made without naming a device has
no values. The models are on the CPU. So a run under this default gives the ordinary run's numbers,
bit for bit, only if every tensor names its device or takes it from an input. (Whole computations on
"meta" raise no error, so the numbers are compared.)
"""

import copy
import io
import re

import pytest
import torch

from minirlhf import evaluate, models, rewards, show
from minirlhf.core.exact import World
from minirlhf.runtime import device_named, use_device
from minirlhf.tour import Tour, write_tour_report
from tests import histories
from tests.tiny import ending_policy, tiny_policy, tiny_tokenizer, tiny_tour

LEFT_OUT = ("tour", "micro-batches")  # the tour has a test of its own; one with micro-batches is in
RUNS = {
    name: run
    for name, run in histories.runs()
    if not any(words in name for words in LEFT_OUT) or name == "ppo, micro-batches"
}


def on_the_cpu(make):
    """The same function, which makes its model on the CPU whatever the default device is."""

    def made(*given, **named):
        with torch.device("cpu"):
            return make(*given, **named)

    return made


@pytest.mark.parametrize("name", RUNS)
def test_a_run_does_not_depend_on_the_default_device(name, monkeypatch):
    expected = RUNS[name]()
    for maker in ("tiny_policy", "ending_policy"):
        monkeypatch.setattr(histories, maker, on_the_cpu(getattr(histories, maker)))
    with torch.device("meta"):
        assert RUNS[name]() == expected


def test_the_tour_does_not_depend_on_the_default_device(tmp_path):
    def tour(folder):
        run = Tour(folder, tiny_tour())
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in run.run()]
        page = write_tour_report(run, folder / "report.html").read_text(encoding="utf-8")
        pictures = re.findall('data:image/png;base64,[^"]+', page)
        return [rows, list(run.history), run.reward_accuracy, pictures]

    expected = tour(tmp_path / "usual")
    with torch.device("meta"):
        assert tour(tmp_path / "meta") == expected


def four_models():
    """Actor, reference, reward model and critic with random weights."""
    actor, reference = ending_policy(0), ending_policy(1)
    scorer, critic = (models.ScalarModel(tiny_policy(seed).base_model) for seed in (2, 3))
    return {"actor": actor, "reference": reference, "reward_model": scorer, "critic": critic}


def table_of(four, seed=0):
    """Two responses sampled from the actor, in a table with all numbers of every token."""
    sampling = models.SamplingConfig(max_new_tokens=8)
    prompts, tokenizer = ["one", "a second"], tiny_tokenizer()
    (batch,) = models.sample_text(four["actor"], tokenizer, prompts, config=sampling, seed=seed)
    return evaluate.token_table(batch, tokenizer, **four, kl_coef=0.1, beta=0.5)


def test_sampling_and_scoring_do_not_depend_on_the_default_device():
    four = four_models()
    scorer, words, tokenizer = four["reward_model"], ["good", "a bad one"], tiny_tokenizer()

    def scored():
        judge = rewards.text_judge([copy.deepcopy(scorer)], tokenizer)
        _, *prefixes = rewards.prefix_scores(scorer, tokenizer, "one", "good")
        numbers = [x.tolist() for x in (judge(["one", "two"], words), *prefixes)]
        return numbers, table_of(four).to_dict("list")

    expected = scored()
    with torch.device("meta"):
        assert scored() == expected


FIGURES = {
    "bars": lambda world, table: show.bars({"a": 0.4, "b": 1.4}, label="score"),
    "clip": lambda world, table: show.clip(eps=0.2),
    "lines": lambda world, table: show.lines({"y": [0.0, 1.0, 0.5]}, [1, 2, 3], xlabel="step"),
    "microscope": lambda world, table: show.microscope(table, "advantage"),
    "strips": lambda world, table: show.token_strips({"a": (["x", "y"], [0.1, -0.2])}),
    "world": lambda world, table: show.world(world, beta=1.0),
    "pipeline": lambda world, table: show.pipeline(),
}


def content(figure):
    """The bytes of a figure's picture, or the text of the microscope's page."""
    if isinstance(figure, show.Microscope):
        return figure.html
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_does_not_depend_on_the_default_device(name):
    world, table = World.random(3, 3, seed=0), table_of(four_models())
    expected = content(FIGURES[name](world, table))
    with torch.device("meta"):
        assert content(FIGURES[name](world, table)) == expected


@pytest.fixture
def the_cpu_again():
    yield
    use_device("cpu")


def test_the_names_of_devices(monkeypatch, the_cpu_again):
    assert device_named() == torch.device("cpu") == device_named("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device is 'cuda'; it must be one that torch finds"):
        use_device("cuda")
    with pytest.raises(ValueError, match="device is 'gpu'; it must be cpu, cuda, mps or auto"):
        device_named("gpu")
    assert device_named() == torch.device("cpu")  # a refused name changes nothing
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_named("auto") == device_named("cuda") == torch.device("cuda")
    assert device_named("cuda:1") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert use_device("auto") == device_named() == torch.device("mps")
