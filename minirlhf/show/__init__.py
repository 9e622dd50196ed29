"""Figures and tables: data in, a matplotlib Figure (or escaped HTML) out, in one call.

    show.lines({"clip": y, "no clip": z}, x, xlabel="step")     series, bands, log axes
    show.bars({"SFT": 0.4, "PPO": 1.4}, label="gold score")     values by name or by group
    show.curves(history, stage="ppo", columns=["score", "kl"])  metrics over the steps of training
    show.differences(runs, value="gold", repeats=["as it is"])  variants against baseline runs
    show.frontier(runs, by="variant")                           score against KL
    show.clip(eps=0.2)                                          PPO's clipped objective
    show.world(world, beta=1.0)                                 the exact world: tree and policies
    show.token_strips({"PPO": (tokens, values)})                one number per token, as colour
    show.texts(table)                                           whole responses side by side
    show.pipeline()                                             diagram: SFT, reward model, PPO
    show.four_models(batch)                                     diagram: who reads and gives what
    show.ppo_step(batch)                                        diagram: one step of PPO
    show.grpo_group(prompt, responses, scores)                  diagram: one group of GRPO
    show.microscope(table, "advantage")                         every number of every token
    show.label_pairs(session)                                   widget: a person labels pairs

No function writes a file or touches pyplot's state. `look.py` says which name gets which colour.
"""

from minirlhf.show.barcharts import bars
from minirlhf.show.clipping import clip
from minirlhf.show.diagrams import four_models, pipeline
from minirlhf.show.diagrams_steps import grpo_group, ppo_step
from minirlhf.show.exact import distance_to_optimum, policy_bars, world
from minirlhf.show.labelling import label_pairs
from minirlhf.show.look import COLOURS, MARKERS, Style, styles
from minirlhf.show.microscope_view import Microscope, microscope
from minirlhf.show.plane import frontier
from minirlhf.show.progress import Progresses
from minirlhf.show.report import write_report
from minirlhf.show.series import lines
from minirlhf.show.side_by_side import Texts, texts
from minirlhf.show.strips import (
    escape,
    printable,
    strip_colour,
    token_strip,
    token_strip_html,
    token_strips,
    visible,
)
from minirlhf.show.training import curves
from minirlhf.show.variants import (
    Difference,
    difference_of_means,
    difference_table,
    differences,
)

__all__ = [
    "COLOURS",
    "MARKERS",
    "Difference",
    "Microscope",
    "Progresses",
    "Style",
    "Texts",
    "bars",
    "clip",
    "curves",
    "difference_of_means",
    "difference_table",
    "differences",
    "distance_to_optimum",
    "escape",
    "four_models",
    "frontier",
    "grpo_group",
    "label_pairs",
    "lines",
    "pipeline",
    "microscope",
    "policy_bars",
    "ppo_step",
    "printable",
    "strip_colour",
    "styles",
    "texts",
    "token_strip",
    "token_strip_html",
    "token_strips",
    "visible",
    "world",
    "write_report",
]
