"""The notebooks that are written in the shape of the lesson budget."""

# By the name of their source. They keep the budget (test_budget.py), they use exported names only
# (tests/test_exports.py), and every number of their prose is claimed (tests/claims/). The other
# notebooks only have to run.
REBUILT: tuple[str, ...] = (
    "00_the_whole_of_rlhf",
    "01_why_rlhf",
    "02_human_feedback_is_data",
    "03_a_language_model_is_a_policy",
    "04_the_policy_gradient",
    "05_advantages_gae",
    "06_ppo",
    "07_the_kl_penalty",
    "08_the_reward_model",
    "09_the_four_models",
    "10_saving_resources",
    "11_grpo",
    "11b_five_objections",
    "12_dpo",
    "13_a_language_model_is_a_q_function",
    "14_what_dpo_gets_wrong",
    "14b_the_repairs_compared",
    "90_the_exact_world",
    "91_the_worked_example",
)
