"""What the tests of lesson 11 read: records, tables of the notebook, groups of its policy."""

import re

import nbformat
import torch

from minirlhf import experiments, models, rewards
from minirlhf.classroom.course import NOTEBOOKS

SEEDS = range(3)


def family():
    """The algorithms compared on arithmetic: a row for each variant and seed."""
    return experiments.results("family").set_index(["variant", "seed"]).sort_index()


def by_run(name):
    """A record with one row for each variant and seed, complete and of the registry's settings."""
    rows = experiments.results(name).set_index(["variant", "seed"])
    assert list(rows.index) == [(v, s) for v in experiments.EXPERIMENTS[name] for s in SEEDS]
    assert set(rows.command) == {f"minirlhf experiment {name} --seeds 3"}
    return rows


def column(runs, variant, name):
    """The values of the three seeds."""
    return runs.loc[variant][name]


def mean(runs, variant, name):
    """The mean of the three seeds."""
    return column(runs, variant, name).mean()


def lesson_table(start):
    """The cells of the DataFrames under the code of lesson 11 that starts with these words."""
    cells = nbformat.read(NOTEBOOKS / "11_grpo.ipynb", 4).cells
    (html,) = [
        output.data["text/html"]
        for cell in cells
        if cell.cell_type == "code" and re.search(rf"^{re.escape(start)}", cell.source, re.M)
        for output in cell.outputs
    ]
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [found for row in rows if (found := re.findall(r"<td>(.*?)</td>", row))]


def drawn(model, count, seed):
    """A group as the lesson samples it: (texts, scores, batch)."""
    policy, tokenizer = model
    sampling = models.SamplingConfig(max_new_tokens=24, temperature=1.0)
    prompts = ["16+16+11="] * count
    (batch,) = models.sample_text(policy, tokenizer, prompts, config=sampling, seed=seed)
    texts = models.decode(tokenizer, batch)
    return texts, torch.tensor(rewards.right_answer(prompts, texts)), batch
