"""Health measures of reward models and of reinforcement learning: bands and alarms.

All thresholds of the health report are in this file. A band whose source is "estimate" comes from practice and from the
runs of the generated reviews task, not from a publication.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

Band = tuple[float, float]  # the smallest and the largest value
EVERYTHING: Band = (-inf, inf)


@dataclass(frozen=True)
class Measure:
    """A measure with its bands."""

    #: Name of its series.
    name: str
    #: What is measured, in words.
    title: str
    #: Its unit; "" for a pure number.
    unit: str
    #: Values that need no attention.
    healthy: Band
    #: Values outside are an alarm; those between the two bands are to be watched.
    tolerable: Band
    #: What to try after an alarm.
    advice: str
    #: Where the bands come from.
    source: str
    #: Values outside, in any update, prove an error of the program or of the numbers.
    possible: Band = EVERYTHING
    #: The value is a multiple of the first values of its series.
    relative: bool = False
    #: First update at which the bands apply.
    after: int = 0


@dataclass(frozen=True)
class Limits:
    """The other thresholds of a verdict."""

    #: Number of measurements that a trend needs.
    least: int = 6
    #: Share of the run after which a reward that does not rise is an alarm.
    progress: float = 0.2
    #: A change counts if it is this many times its standard error.
    deviations: float = 2.0
    #: A probe that falls by this share of its rise, while the reward does not fall, is a sign of hacking.
    probe_drop: float = 0.5
    #: A reward that falls by this share of its start, and by at least `reward_fall`, is a collapse.
    reward_drop: float = 0.5
    #: See `reward_drop`.
    reward_fall: float = 0.3
    #: A KL divergence below it, in nats per response, says that the policy hardly moved.
    unmoved: float = 0.5
    #: With a mean reward of at least this and no signal in most groups, nothing is left to learn (rewards of 0 to 1).
    solved: float = 0.9


LIMITS = Limits()

Word = Literal["undecided", "learning", "stalled", "hacking", "collapsed", "broken"]

#: What to try, by verdict.
ADVICE: Mapping[Word, tuple[str, ...]] = {
    "undecided": (),
    "learning": ("continue; compare with best-of-16 samples of the reference",),
    "stalled": (
        "raise the learning rate if the KL divergence is small",
        "check that some sampled answers get a reward before training; otherwise fine-tune first",
    ),
    "hacking": (
        "raise the KL coefficient, or stop at the checkpoint with the best probe",
        "train the reward model on comparisons of this policy's answers; its probes name what it overlooks",
    ),
    "collapsed": (
        "return to an earlier checkpoint and lower the learning rate",
        "raise the KL coefficient; use fewer inner epochs",
    ),
    "broken": ("stop: the numbers are wrong, and no setting repairs them; see the evidence",),
}


def by_name(*measures: Measure) -> dict[str, Measure]:
    """Return a table of measures."""
    return {measure.name: measure for measure in measures}


# ---- The reward model ---------------------------------------------------------------------------------------------

REWARD_MODEL = by_name(
    Measure(
        "accuracy", "accuracy on held-out pairs", "", (0.6, 0.9), (0.55, 0.9),
        "below: train on more pairs, or start from a fine-tuned model; above: look for leaked prompts or a length bias",
        "CarperAI/trlx#338; estimate",
    ),
    Measure(
        "bayes_share", "accuracy as a share of the best possible one", "", (0.95, 1.05), (0.9, 1.1),
        "use more pairs, or a larger model", "estimate",
    ),
    Measure(
        "loss", "loss on held-out pairs", "nats", (0, 0.67), (0, 0.69),
        "raise the learning rate; a loss of 0.69 is that of guessing", "estimate",
    ),
    Measure(
        "accuracy_gap", "training minus held-out accuracy", "", (-inf, 0.05), (-inf, 0.1),
        "train for one epoch only", "OpenRLHF and Ziegler et al. 2019: one epoch",
    ),
    Measure(
        "margin", "mean score of chosen minus rejected", "", (0.5, 3), (0, inf),
        "a margin that grows while accuracy does not is overconfidence: stop earlier", "estimate",
    ),
    Measure(
        "calibration_error", "expected calibration error, 10 bins", "", (0, 0.05), (0, 0.15),
        "divide the scores by a temperature fitted on held-out pairs", "estimate",
    ),
    Measure(
        "slope", "slope of the true log-odds on the margin", "", (0.8, 1.2), (0.6, inf),
        "below 1 the scores are overconfident: divide them before they become rewards", "estimate",
    ),
    Measure(
        "confidence_rise", "accuracy of the surest third minus that of the least sure third", "", (0.02, 1), (0, 1),
        "the margin says nothing about the labels: train on more pairs", "estimate",
    ),
    Measure(
        "length_correlation", "correlation of score and length", "", (-0.3, 0.3), (-0.5, 0.5),
        "add pairs in which the shorter answer wins", "estimate",
    ),
    Measure(
        "length_correlation_gap", "correlation with length, scores minus labels", "", (-0.1, 0.1), (-0.3, 0.3),
        "add pairs of equal length", "estimate",
    ),
    Measure(
        "matched_accuracy_drop", "accuracy minus that on pairs of equal length", "", (-inf, 0.03), (-inf, 0.08),
        "the model counts tokens: add pairs of equal length", "estimate",
    ),
    Measure(
        "side_error", "margin plus the margin with the sides swapped, at most", "", (0, 1e-5), (0, 1e-4),
        "the score of an answer depends on its place in the batch: check the padding", "exact by construction",
    ),
    Measure(
        "probe_gain", "largest mean gain of a change that makes answers worse", "sd", (-inf, 0), (-inf, 0.1),
        "add pairs with this flaw: a policy will find it", "microsoft/DeepSpeedExamples#491",
    ),
    Measure(
        "reference_mean", "mean score of reference samples after normalization", "sd", (-0.1, 0.1), (-0.5, 0.5),
        "calibrate gain and bias on samples of this reference", "Ziegler et al. 2019",
    ),
    Measure(
        "reference_sd", "standard deviation of the scores of reference samples", "", (0.3, inf), (0.1, inf),
        "the head is not trained: raise its learning rate", "estimate",
    ),
    Measure(
        "comparisons", "number of training pairs", "", (2000, inf), (500, inf),
        "collect more comparisons", "hiyouga/LLaMA-Factory#934",
    ),
    Measure(
        "seed_agreement", "correlation of the scores of two seeds on policy samples", "", (0.8, 1), (0.6, 1),
        "the samples are unlike the training pairs: collect comparisons of them", "estimate",
    ),
)  # fmt: skip

# ---- The policy ---------------------------------------------------------------------------------------------------

POLICY = by_name(
    Measure(
        "ratio_error", "distance of the first minibatch's mean ratio from 1", "", (0, 1e-6), (0, 1e-6),
        "dropout, temperature, padding or parameters differ between the two forward passes",
        "Huang et al. 2022, 37 details of PPO", possible=(0, 1e-6),
    ),
    Measure(  # rounding adds 1e-12; errors of both signs, which the mean ratio does not show, add their squares
        "first_approximate_kl", "KL divergence of the first minibatch to the old policy per token", "nats",
        (0, 1e-10), (0, 1e-10), "dropout, temperature, padding or parameters differ between the two forward passes",
        "Huang et al. 2022, 37 details of PPO", possible=(0, 1e-10),
    ),
    Measure(
        "first_clip_fraction", "clipped share of the first minibatch", "", (0, 0), (0, 0),
        "the old log-probabilities are not those of the current parameters",
        "vwxyzjn/summarize_from_feedback_details", possible=(0, 0),
    ),
    Measure(
        "sampler_difference", "log p of sampler minus trainer, at most", "nats", (0, 1e-4), (0, 1e-3),
        "check temperature, positions and padding of the sampler", "estimate", possible=(0, 1e-3),
    ),
    Measure(
        "exact_kl", "smallest exact KL divergence of a token to the reference", "nats", (0, inf), (-1e-6, inf),
        "an exact KL divergence is never negative: check masks and temperature", "definition", possible=(-1e-6, inf),
    ),
    Measure(
        "reward_failures", "share of answers for which the reward function failed", "", (0, 0), (0, 0.1),
        "correct the reward function, which raises errors or returns no finite numbers", "estimate", possible=(0, 0.5),
    ),
    Measure(
        "approximate_kl", "KL divergence to the old policy per token", "nats", (0, 0.01), (-inf, 0.02),
        "lower the learning rate, or use fewer inner epochs", "vwxyzjn/summarize_from_feedback_details",
    ),
    Measure(
        "clip_fraction", "clipped share of the tokens", "", (0.001, 0.2), (0, 0.3),
        "above: lower the learning rate; near 0 for long: raise it", "vwxyzjn/summarize_from_feedback_details",
    ),
    Measure(
        "mean_ratio", "mean probability ratio", "", (0.98, 1.02), (0.1, 10),
        "lower the learning rate", "huggingface/trl#1857",
    ),
    Measure(
        "kl", "KL divergence to the reference per response", "nats", (0, 15), (-1, 50),
        "raise the KL coefficient", "Ziegler et al. 2019: 6 to 10 nats; estimate", possible=(-1, inf),
    ),
    Measure(
        "entropy", "entropy per token, as a share of its start", "", (1 / 3, 1.5), (0.1, 3),
        "below: raise the KL coefficient or lower the learning rate; above: lower the learning rate", "estimate",
        relative=True,
    ),
    Measure(
        "explained_variance", "explained variance of the values", "", (0, 1), (0, 1),
        "raise the learning rate of the value model to 5 to 10 times the policy's", "openai/lm-human-preferences",
        after=20,
    ),
    Measure(
        "length", "response length, as a share of its start", "", (0.5, 1.3), (0.1, 2),
        "the reward may pay for length: compare its correlation with length", "estimate", relative=True,
    ),
    Measure(
        "finished", "share of responses with an end token", "", (0.95, 1), (0.8, 1),
        "penalize a missing end, or allow longer responses", "Huang et al. 2024, N+ details of RLHF",
    ),
    Measure(
        "distinct", "share of distinct responses, as a share of its start", "", (0.5, inf), (0.1, inf),
        "raise the KL coefficient", "huggingface/trl#204", relative=True,
    ),
    Measure(
        "dead_groups", "share of groups whose answers all get the same reward", "", (0, 0.5), (0, 0.8),
        "choose prompts that are neither always nor never solved, or larger groups", "huggingface/trl#3502",
    ),
    Measure(
        "gradient_norm", "gradient norm", "", (0.1, 5), (1e-9, 50),
        "0: no answer has an advantage; large: lower the learning rate", "estimate",
    ),
    Measure(
        "held_out_gap", "training minus held-out reward", "", (-inf, 0.5), (-inf, 1),
        "use more prompts", "estimate",
    ),
)  # fmt: skip

#: With bfloat16 products, two programs round at other places. So they do with float32 ones on a GPU or a TPU, which
#: multiply in TensorFloat-32 or in bfloat16 unless a program asks for more.
POLICY_BFLOAT16 = POLICY | by_name(
    replace(POLICY["ratio_error"], healthy=(0, 1e-3), tolerable=(0, 1e-2), possible=(0, 1e-2)),
    replace(POLICY["first_approximate_kl"], healthy=(0, 1e-3), tolerable=(0, 1e-2), possible=(0, 1e-2)),
    replace(POLICY["sampler_difference"], healthy=(0, 0.05), tolerable=(0, 0.2), possible=(0, 1)),
)
REWARD_MODEL_BFLOAT16 = REWARD_MODEL | by_name(
    replace(REWARD_MODEL["side_error"], healthy=(0, 0.05), tolerable=(0, 0.2)),
)


def is_exact(dtype: str, backend: str) -> bool:
    """Whether products of a model have the precision of float32.

    Args:
        dtype: `model.dtype`.
        backend: The platform that computes, as JAX names it.
    """
    return dtype == "float32" and backend == "cpu"
