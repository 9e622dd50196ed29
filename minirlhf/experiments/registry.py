"""What is recorded: experiment name -> variant name -> settings. Plain data; nothing runs here.

The module `runs` turns settings into a run. Each variant is run once per seed.
"""

from minirlhf.experiments.practice import TASKS
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.online import ONLINE, OWN_PAIRS
from minirlhf.loops.preference import LOSSES

RECORDED_SEEDS = 3  # seeds 0, 1 and 2, unless a command says otherwise
SEEDS = {"microscope": 1, "one_batch": 1}  # experiments with another number of seeds
BRIEF = 80  # steps of most arithmetic runs: a fifth of the command line's
LONGER = (5,)  # levels of problems that no training has practised
BEST = 8  # best-of-n imitation: samples per prompt, of which the best one is kept
SMALL_KL = KLConfig(kl_coef=0.1)
NO_REUSE: dict = {"epochs": 1, "minibatch_size": 64}  # one update for each batch
# PPO makes four updates with a batch. For one update: twice and four times the usual learning rate.
DOUBLE_STEPS = OptimiserConfig(lr=2e-4)
LARGER_STEPS = OptimiserConfig(lr=4e-4)
NO_CLIP = {"clip_eps": 1 - 1e-6, "clip_eps_high": 1e6}  # wide enough never to clip

FAMILY_VARIANTS: dict[str, dict] = {
    name: {"row": name}
    for name in (
        "start",
        "grpo",
        "rloo",
        "dr-grpo",
        "dapo",
        "gspo",
        "cispo",
        "reinforce",
        "remax",
        "reinforce++",
        "reinforce++-baseline",
    )
} | {
    "ppo": {"row": "ppo"},
    "ppo, critic trained first": {"row": "ppo", "given": {"critic_warmup": 15}},
    "ppo, 8 responses a prompt": {
        "row": "ppo",
        "given": {"samples_per_prompt": TASKS["arithmetic"].settings["group_size"]},
    },
}
for _name in ("grpo", "gspo", "cispo"):
    FAMILY_VARIANTS[f"{_name}, 4 epochs"] = {
        "row": _name,
        "given": {"epochs": 4, "steps": BRIEF // 2},
    }
for _name in ("grpo", "reinforce"):
    FAMILY_VARIANTS[f"{_name}, 400 steps"] = {"row": _name, "given": {"steps": 400}}

PREFERENCE_VARIANTS: dict[str, dict] = {name: {"dpo": {"loss": name}} for name in LOSSES} | {
    "dpo, synced": {"dpo": {"sync_every": 25}},
    "dpo, mixed": {"dpo": {"sync_every": 25, "mixup": 0.6}},
    "dpo, no reference": {"dpo": {"reference_free": True}},
    "human texts, the scorer's labels": {"way": "relabelled", "dpo": {"beta": OWN_PAIRS.beta}},
    "the start's own texts": {"way": "once", "dpo": {"beta": OWN_PAIRS.beta}},
    **{name: {"way": name} for name in ONLINE},
    f"best of {BEST}, imitated": {"way": "imitated"},
}

ERRS = 0.2  # share of the calls that an unreliable calculator gets wrong
TURN_WAYS: dict[str, dict] = {
    "start": {"method": "start"},
    **{name: {"method": name} for name in ("dpo", "kto", "grpo")},
    **{f"{name}, no mask": {"method": name, "mask": False} for name in ("dpo", "kto", "grpo")},
    **{f"{name}, reference follows": {"method": name, "follows": True} for name in ("dpo", "kto")},
}

PROXIES: dict[str, dict] = {
    f"{size}, {labels} labels": {"size": size, "labels": labels}
    for size in ("2 x 64", "3 x 192", "4 x 256")  # layers x width
    for labels in (200, 1000, 5000)
}
MIDDLE = "3 x 192, 1000 labels"  # the proxy that ensembles and KL penalties are tried on
OVEROPTIMISED: dict[str, dict] = (
    PROXIES
    | {"4 x 256, 5000 human labels": PROXIES["4 x 256, 5000 labels"] | {"human": True}}
    | {
        f"{MIDDLE}, {name} of 5": PROXIES[MIDDLE] | {"ensemble": how}
        for name, how in (("mean", "mean"), ("lowest", "min"), ("mean - variance", "variance"))
    }
    | {f"{MIDDLE}, kl_coef {c:g}": PROXIES[MIDDLE] | {"kl_coef": c} for c in (0.02, 0.05, 0.1)}
    | {"gold itself": {"judge": "gold"}, "the longest": {"judge": "length"}}
)

PARTS: dict[str, dict] = {
    "REINFORCE": {"row": "reinforce"},
    "REINFORCE, double steps": {"row": "reinforce", "given": {"optimiser": DOUBLE_STEPS}},
    "REINFORCE, larger steps": {"row": "reinforce", "given": {"optimiser": LARGER_STEPS}},
    "REINFORCE, larger steps and batches": {
        "row": "reinforce",
        "given": {"optimiser": LARGER_STEPS, "prompts_per_step": 256},
    },
    "with a critic": {"row": "ppo", "given": NO_REUSE | {"lam": 1.0}},
    "with GAE": {"row": "ppo", "given": NO_REUSE},
    "with GAE, double steps": {"row": "ppo", "given": NO_REUSE | {"actor": DOUBLE_STEPS}},
    "with GAE, larger steps": {"row": "ppo", "given": NO_REUSE | {"actor": LARGER_STEPS}},
    "with GAE, larger steps and batches": {
        "row": "ppo",
        "given": NO_REUSE | {"batch_size": 256, "minibatch_size": 256, "actor": LARGER_STEPS},
    },
}

EXPERIMENTS: dict[str, dict[str, dict]] = {
    # A reward model trained on fewer or more pairs.
    "labels": {f"{n} pairs": {"pairs": n} for n in (100, 400, 1600, 6400, 25_600)},
    # PPO with several KL coefficients, and with the adaptive controller.
    "leash": {
        f"kl_coef {c:g}": {"ppo": {"kl": KLConfig(kl_coef=c)}} for c in (0, 0.1, 0.25, 0.5, 1, 2)
    }
    | {"target 2 nats": {"ppo": {"kl": KLConfig(kl_coef=0.1, target=2.0, horizon=100.0)}}},
    # PPO with parts removed.
    "ablations": {
        "as it is": {},
        "no clip": {"ppo": NO_CLIP},
        "no value clip": {"ppo": {"value_clip_eps": 1e6}},
        "no whitening": {"ppo": {"whiten": False}},
        "lambda 1": {"ppo": {"lam": 1.0}},
        "one epoch": {"ppo": {"epochs": 1}},
        "eight epochs": {"ppo": {"epochs": 8}},
        "eight epochs, no clip": {"ppo": {"epochs": 8} | NO_CLIP},
    },
    # One healthy run of PPO and seven faulty ones. Lesson 09 shows their logs without names.
    "atlas": {
        "healthy": {},
        "hacked": {"ppo": {"kl": KLConfig(kl_coef=0.0)}},
        "collapsed": {"ppo": {"actor": OptimiserConfig(lr=3e-3)}},
        "dead critic": {"fault": "dead critic"},
        "KL sign wrong": {"fault": "KL sign wrong"},
        "reward scale wrong": {"fault": "reward scale wrong"},
        "EOS never trained": {"fault": "EOS never trained"},
        "whitening at the optimum": {"fault": "whitening at the optimum"},
    },
    # Arithmetic: every algorithm samples 128 responses per step.
    "family": FAMILY_VARIANTS,
    # Arithmetic with noise of at most 0.001 on every score, as two evaluations of a reward model
    # would have.
    "jitter": {
        "grpo, exact scores": {"row": "grpo"},
        "grpo": {"row": "grpo", "jitter": 1e-3},
        "no std": {"row": "grpo-no-std", "jitter": 1e-3},
        "a floor of 0.1": {"row": "grpo", "choices": {"min_std": 0.1}, "jitter": 1e-3},
        "groups dropped": {"row": "grpo", "choices": {"drop_spread": 0.01}, "jitter": 1e-3},
    },
    # Arithmetic: training on problems of levels 2 to 4, evaluation on the longer ones of level 5.
    "longer": {
        "start": {"row": "start", "levels": LONGER},
        "grpo": {"row": "grpo", "levels": LONGER},
        "grpo, 400 steps": {"row": "grpo", "given": {"steps": 400}, "levels": LONGER},
    },
    # Arithmetic with scores that are dealt out to the responses at random, and shorter steps.
    "dealt": {
        f"{share} of the learning rate": {
            "row": "grpo",
            "dealt": True,
            "given": {
                "optimiser": OptimiserConfig(lr=TASKS["arithmetic"].settings["optimiser"].lr * part)
            },
        }
        for share, part in (("all", 1), ("a quarter", 1 / 4), ("a tenth", 1 / 10))
    },
    # Reviews with a small KL coefficient: how far each algorithm overoptimises the reward model.
    "hacking": {
        name: {"task": "reviews", "row": name, "given": {"kl": SMALL_KL}}
        for name in ("grpo", "grpo-no-std", "dr-grpo", "rloo", "ppo")
    },
    # From REINFORCE to PPO, one part after the other, with as many samples. Each batch is used for
    # one update. Compare with PPO, "as it is" of the ablations.
    "parts": {name: {"task": "reviews"} | part for name, part in PARTS.items()},
    # PPO with less memory. Compare each with "as it is" of the ablations.
    "resources": {
        "shared trunk": {"critic": "shared"},
        "adapters of rank 16": {"lora": 16},
        "critic from the SFT model": {"critic": "sft"},
    },
    # DPO on pairs of human ratings, with several values of beta.
    "betas": {f"beta {beta:g}": {"dpo": {"beta": beta}} for beta in (0.03, 0.1, 0.3, 1.0)},
    # Which method locates an error in a calculation?
    "planted": {
        "planted digits": {"texts": "planted"},
        "own samples": {"texts": "own"},
    },
    # How often each loss ranks 2,000 held-out pairs of the test films correctly.
    "order": {name: {"dpo": {"loss": name}} for name in LOSSES},
    # PPO, read token by token at several steps of one run.
    "microscope": {"as it is": {"read_at": (0, 4, 8, 12, 18, 24), "prompts": 4}},
    # Three plain steps of PPO; the last batch is read token by token at each of its updates.
    "one_batch": {"as it is": {"texts": 4}},
    # The preference losses on the same pairs; other references; other authors of the texts.
    "preference": PREFERENCE_VARIANTS,
    # An agent with a calculator learns from its own trajectories, three times: sample, pair, train.
    "multi_turn": TURN_WAYS
    | {f"{name}; the tool errs": way | {"errs": ERRS} for name, way in TURN_WAYS.items()},
    # Long calculations: preferences between steps, and between whole responses.
    "steps": {
        "start": {"way": "start"},
        "step dpo": {"way": "step"},
        "whole responses": {"way": "whole"},
    },
    # Process and outcome reward models on long calculations. Equally many answers or steps are
    # checked for each of the first five.
    "process_rewards": {
        "soft labels": {"labels": "soft"},
        "hard labels": {"labels": "hard"},
        "outcomes": {"labels": "outcome"},
        "outcomes at every step": {"labels": "outcome, every step"},
        "labels of the rule": {"labels": "rule"},
        "no reward model": {"labels": None},
        # the same, with the policy's log-probabilities as a further input
        **{
            f"log-probabilities too, {checks:,} checks": {
                "labels": "rule",
                "checks": checks,
                "logprobs": True,
            }
            for checks in (100, 1_000)
        },
        # without this input, and otherwise as with 1,000 checks
        "head only, text alone": {"labels": "rule", "checks": 1_000, "frozen": True},
    },
    # The policy is optimised for proxies of several sizes and numbers of labels.
    "overoptimisation": OVEROPTIMISED,
}

JUDGED = ("gold", "proxy", "kl", "length")
PASSED = ("greedy", "pass_1", "pass_16", "length")
COMPARED: dict[str, tuple[str, ...]] = {  # the numbers that a repeated run must reproduce
    "tour": JUDGED,
    "leash": JUDGED,
    "ablations": JUDGED,
    "labels": ("accuracy", "loss", "confidence"),
    "family": PASSED,
    "jitter": PASSED,
    "longer": PASSED,
    "dealt": PASSED,
    "hacking": JUDGED,
    "parts": JUDGED,
    "resources": JUDGED,
    "betas": JUDGED,
    "preference": JUDGED,
    "microscope": JUDGED,
    "one_batch": ("score", "kl", "length", "clip_fraction"),
    "order": ("chosen_change", "rejected_change", "right_order"),
    "multi_turn": (*PASSED, "right call", "no call"),
    "steps": (*PASSED, "step_right"),
    "process_rewards": ("best_product", "own", "planted"),
    "overoptimisation": ("gold", "kl"),
    "planted": tuple(
        f"{cases}, {method}"
        for cases in ("planted", "own")
        for method in ("surprisal", "implicit reward", "value")
    ),
}
