"""What a run learns: the configuration of each objective."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lmjax.config.policies import GRPOConfig, PPOConfig
from lmjax.config.ranges import interval, nonnegative, positive, share, size


@dataclass(frozen=True)
class CausalConfig:
    """Next-token prediction."""

    #: Selects this member of the union.
    family: Literal["causal"] = "causal"
    #: Weight of log(Z)^2, which keeps the logits nearly normalized (PaLM, section 5: 1e-4).
    z_loss: Annotated[float, nonnegative()] = 0.0
    #: Weight of the squared norm of all matrices and embeddings (the regularized likelihood of Bengio et al. 2003,
    #: equation 1).
    penalty: Annotated[float, nonnegative()] = 0.0
    #: Number of tokens whose logits are materialized at a time (GPT; 0: the complete microbatch). It bounds the memory
    #: of a large vocabulary.
    chunk: Annotated[int, size(0)] = 0


@dataclass(frozen=True)
class MaskedConfig:
    """Masked tokens and the next sentence (Devlin et al. 2019, section 3.1).

    The masks and pairs of every sample are drawn independently.
    """

    #: Selects this member of the union.
    family: Literal["masked"] = "masked"
    #: Share of tokens that are predicted.
    rate: Annotated[float, share()] = 0.15
    #: Share of the predicted tokens that become [MASK].
    masked: Annotated[float, share()] = 0.8
    #: Share of the predicted tokens that become a random token. The rest remain unchanged.
    random: Annotated[float, share()] = 0.1
    #: Mask all pieces of a word together.
    whole_word: bool = False
    #: Share of pairs whose second part actually follows the first.
    next_sentence: Annotated[float, share()] = 0.5
    #: Share of samples that have a random shorter length.
    short: Annotated[float, share()] = 0.1


@dataclass(frozen=True)
class TranslationConfig:
    """Sequence to sequence: the next token of the target, with teacher forcing."""

    #: Selects this member of the union.
    family: Literal["translation"] = "translation"
    #: Share of the probability that is spread over the complete vocabulary (Vaswani et al. 2017, section 5.4).
    label_smoothing: Annotated[float, share()] = 0.1
    #: Beam width of the decoding that is scored at the end (1: greedy).
    beam: Annotated[int, size(0)] = 4
    #: Exponent of the length penalty: scores are divided by ((5 + length) / 6)^length_penalty (Wu et al. 2016, section
    #: 7).
    length_penalty: Annotated[float, nonnegative()] = 0.6
    #: Number of validation pairs that are decoded and scored at the end (0: all).
    scored: Annotated[int, size(0)] = 500


@dataclass(frozen=True)
class ClassificationConfig:
    """Classification: a text, or a pair of texts, to one of the labels."""

    #: Selects this member of the union.
    family: Literal["classification"] = "classification"
    #: Names of the labels (empty: the labels of the data).
    labels: tuple[str, ...] = ()
    #: Share of the probability that is spread over all labels.
    label_smoothing: Annotated[float, share()] = 0.0


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning: the next token of the answers in conversations."""

    #: Selects this member of the union.
    family: Literal["sft"] = "sft"
    #: Weight of log(Z)^2, as in `CausalConfig`.
    z_loss: Annotated[float, nonnegative()] = 0.0
    #: Number of tokens whose logits are materialized at a time, as in `CausalConfig`.
    chunk: Annotated[int, size(0)] = 0
    #: Number of validation prompts that are answered and compared at the end (0: all).
    scored: Annotated[int, size(0)] = 200
    #: Length in tokens at which such an answer is stopped.
    answer_tokens: Annotated[int, size(1)] = 256


@dataclass(frozen=True)
class RewardConfig:
    """A score of answers, learned from pairs of which one is preferred.

    As in Ouyang et al. 2022, section 3.5.
    """

    #: Selects this member of the union.
    family: Literal["reward"] = "reward"
    #: Use the margins of the data: by how much the preferred answer should be ahead (Touvron et al. 2023, section
    #: 3.2.2). Without, they are ignored.
    margins: bool = True
    #: Coefficient of (chosen + rejected)^2, which keeps the scores near 0 (Eisenstein et al. 2023: 0.01).
    centring: Annotated[float, nonnegative()] = 0.0


@dataclass(frozen=True)
class DirectConfig:
    """Direct preference optimization: a policy learned from pairs, without a reward model.

    As in Rafailov et al. 2023. The reference is the model of `init_from`. A log-probability is the sum over the tokens
    of an answer, except for `ipo`, which takes the mean.
    """

    #: Selects this member of the union.
    family: Literal["dpo"] = "dpo"
    #: The loss: `sigmoid` (DPO), `ipo` (Azar et al. 2023), `hinge` (Zhao et al. 2023), or `robust`, which is unbiased
    #: if a share `label_smoothing` of the labels is wrong (Chowdhury et al. 2024).
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    #: Coefficient of the KL divergence to the reference: the smaller, the further the policy moves.
    beta: Annotated[float, positive()] = 0.1
    #: Assumed share of wrong labels, for `sigmoid` and `robust`.
    label_smoothing: Annotated[float, interval("[0, 0.5)")] = 0.0
    #: Coefficient of the mean negative log-probability of the tokens of preferred answers, which keeps them likely
    #: (Pang et al. 2024).
    sft: Annotated[float, nonnegative()] = 0.0
    #: Number of tokens whose logits are materialized at a time, as in `CausalConfig`.
    chunk: Annotated[int, size(0)] = 0
    #: Length in tokens at which an answer of the sample is stopped.
    answer_tokens: Annotated[int, size(1)] = 256


@dataclass(frozen=True)
class CustomObjectiveConfig:
    """Base class of the configuration of a registered objective.

    A user adds objectives with `lmjax.register_objective`.
    A subclass is a frozen dataclass too, and narrows `family` to `Literal["NAME"]`.
    """

    #: Selects the member of the union.
    family: str = ""


ObjectiveConfig = (
    CausalConfig
    | MaskedConfig
    | TranslationConfig
    | ClassificationConfig
    | SFTConfig
    | RewardConfig
    | DirectConfig
    | GRPOConfig
    | PPOConfig
    | CustomObjectiveConfig
)
