"""The schema of a run: small frozen dataclasses, one per concern.

A configuration is complete and typed: every setting is a field below. `lmjax.typed` changes fields from `a.b=value`
strings and gives JSON and back, exactly. No JAX is imported here, so that a typing error is answered at once.
"""

from dataclasses import dataclass, field
from typing import Literal

from lmjax.architectures import BERTConfig as BERTConfig
from lmjax.architectures import GPTConfig as GPTConfig
from lmjax.architectures import ModelConfig as ModelConfig
from lmjax.architectures import NNLMConfig as NNLMConfig
from lmjax.architectures import RNNConfig as RNNConfig
from lmjax.architectures import TransformerConfig as TransformerConfig
from lmjax.corpora import DataConfig as DataConfig
from lmjax.corpora import InContextConfig as InContextConfig
from lmjax.corpora import RecordsConfig as RecordsConfig
from lmjax.corpora import SourceConfig as SourceConfig
from lmjax.corpora import TokenizerConfig as TokenizerConfig
from lmjax.typed import UserError as UserError  # for every room that refuses a value


@dataclass(frozen=True)
class CausalConfig:
    """Next-token prediction.

    z_loss: weight of log(Z)^2 (PaLM, section 5: 1e-4), which keeps the logits near normalised. penalty: weight of
    the squared norm of all matrices and embeddings (the regularised likelihood of Bengio et al. 2003, equation 1).
    chunk: tokens whose logits exist at once (GPT; 0: all of a microbatch), so that a large vocabulary takes no memory.
    """

    family: Literal["causal"] = "causal"
    z_loss: float = 0.0
    penalty: float = 0.0
    chunk: int = 0


@dataclass(frozen=True)
class MaskedConfig:
    """Masked tokens and the next sentence (Devlin et al. 2019, section 3.1), drawn anew for every sample.

    rate: the share of tokens to be predicted; of these `masked` become [MASK], `random` another token, the rest stay.
    whole_word: masks all pieces of a word together. next_sentence: the share of pairs whose second part really follows.
    short: the share of samples of a random shorter length.
    """

    family: Literal["masked"] = "masked"
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    whole_word: bool = False
    next_sentence: float = 0.5
    short: float = 0.1


@dataclass(frozen=True)
class TranslationConfig:
    """Sequence to sequence: the target's next token, given the source and the target so far (teacher forcing).

    label_smoothing: the share of probability spread over the whole vocabulary (Vaswani et al. 2017, section 5.4).
    beam, length_penalty: of the decoding that is scored at the end; 1 is greedy. Scores are divided by
        ((5 + length) / 6)^length_penalty (Wu et al. 2016, section 7).
    scored: pairs of the validation split that are decoded and scored at the end (0: all).
    """

    family: Literal["translation"] = "translation"
    label_smoothing: float = 0.1
    beam: int = 4
    length_penalty: float = 0.6
    scored: int = 500


@dataclass(frozen=True)
class ClassificationConfig:
    """A text, or a pair of texts, to one of the labels. label_smoothing: as in translation. labels: empty takes those
    of the data."""

    family: Literal["classification"] = "classification"
    labels: tuple[str, ...] = ()
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer; the defaults are those of GPT-3 (appendix B) and LLaMA (section 2.3).

    freeze: parameters whose path (`blocks/attention/query/kernel`) matches one of these patterns stay as they are.
    Weight decay spares biases, norms and embeddings, by name. ema: decay of an average of the parameters that
    evaluation then uses (0: none). muon_learning_rate_ratio: Muon's matrices learn at this multiple of the peak.
    muon_momentum: of these matrices; a run of a few hundred updates learns faster with less.
    """

    name: Literal["adamw", "adam", "lion", "adafactor", "muon"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.0
    muon_learning_rate_ratio: float = 1.0
    muon_momentum: float = 0.95
    freeze: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run.

    warmup: share of the run spent rising linearly to `peak`; the first update is never zero.
    shape: `wsd` holds the peak and decays linearly over the last `decay` share of the run.
    final: the rate at the end as a share of the peak (not used by `constant` and `inverse_sqrt`).
    unit: progress counted in updates, or in tokens (the two differ while the batch grows).
    cuts: ((update, factor, over), ...): from that update on, the rate is `factor` of the schedule's and rises back to
        all of it over so many updates. The guard makes one where skipping data did not help.
    """

    peak: float = 6e-4
    warmup: float = 0.005
    shape: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = "cosine"
    final: float = 0.1
    decay: float = 0.2
    unit: Literal["updates", "tokens"] = "tokens"
    cuts: tuple[tuple[int, float, int], ...] = ()


@dataclass(frozen=True)
class BatchConfig:
    """Tokens per update, growing with the tokens seen, in equal microbatches.

    tokens: ((from_token, batch_tokens), ...). growth: jump at each point, or rise linearly between the points.
    microbatch: sequences computed at once over all devices; batch growth changes only how many microbatches an
        update accumulates, so nothing is compiled again.
    """

    tokens: tuple[tuple[int, int], ...] = ((0, 32_768),)
    growth: Literal["steps", "linear"] = "steps"
    microbatch: int = 32


@dataclass(frozen=True)
class TrainConfig:
    """The length of the run and what happens along the way.

    updates: optimizer updates; 0 takes as many as `tokens` need. evaluate_every: 0 evaluates at the end only.
    evaluate_batches: microbatches of the validation split per evaluation during the run (0: all of it); final_batches:
        of the last evaluation. profile: (first, last) update of a `jax.profiler` trace.
    expect: ((metric, from, to), ...), such as ("val_bits_per_byte", 1.6, 1.8): what this configuration is known to
        reach, shown beside what it reached.
    baselines: measure the byte unigram and the Kneser-Ney 5-gram on the same split at the end.
    """

    updates: int = 0
    tokens: int = 0
    evaluate_every: int = 0
    evaluate_batches: int = 0
    final_batches: int = 0
    log_every: int = 1
    sample_tokens: int = 200
    sample_prompt: str = ""
    expect: tuple[tuple[str, float, float], ...] = ()
    profile: tuple[int, ...] = ()
    baselines: bool = True


@dataclass(frozen=True)
class EvaluateConfig:
    """In-context evaluation at every evaluation of the run: metrics `val_TASK_SHOTS_shot`, and a picture of them.

    tasks: bundled tasks or folders (empty: none); items that `data.in_context` holds out, where it has the task.
    shots: numbers of examples. limit: documents of each task.
    """

    tasks: tuple[str, ...] = ()
    shots: tuple[int, ...] = (0, 1, 8)
    limit: int = 100


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are made and kept. Update 0 and two healthy ones are always kept.

    every: updates between checkpoints (0: at the end only). keep: the last N. keep_every: and every K-th update (0:
        none). keep_best: and the one with the lowest validation loss.
    retries: how many failed saves in a row are tried again, each at the next update. on_failure: what happens then:
        `stop` ends the run with status 1 (the older checkpoints stand), `continue` trains on.
    """

    every: int = 0
    keep: int = 3
    keep_every: int = 0
    keep_best: bool = True
    retries: int = 2
    on_failure: Literal["stop", "continue"] = "stop"


@dataclass(frozen=True)
class GuardConfig:
    """What is a spike, and what happens then. z is a distance from the median of the accepted values in a window, in
    robust standard deviations (1.4826 MAD); a batch that is suspect is not applied and stays out of the window.

    policy: `rollback` goes back to a healthy checkpoint and past the data; `skip` only leaves suspect batches out;
        `off` applies everything. All three give the same bits as long as nothing is suspect.
    window: accepted losses and log gradient norms remembered. armed: how many are needed before a batch can be suspect;
        armed_hard: before it can be suspect for a hard reason. An announced change (batch size, mixture) starts anew.
    loss_z, loss_floor, loss_floor_nats: suspect above this z; the deviation counts as at least this share of the
        median, and as so many nats (what is learned to the end has losses near zero, which differ by large factors).
    grad_z, grad_floor, grad_loss_z: suspect if the log gradient norm is above grad_z (deviation at least grad_floor)
        and the loss above grad_loss_z. hard_z: above this, or not finite, a suspect is hard.
    in_a_row, hard_in_a_row, several, among: a rollback is triggered by so many suspects in a row, so many hard ones in
        a row, or `several` of the last `among` batches; parameters that are not finite trigger at once.
    divergence_window, divergence_mads, divergence_share: and so does a median of the last so many losses that exceeds
        the best such median by so many MADs (each at least loss_floor_nats) and by this share.
    margin, horizon: a checkpoint is healthy with no suspect from `margin` updates before it to min(horizon,
        checkpoint.every) after it; a rollback goes to the newest that lies `margin` updates before the onset.
    attribute: first replay the same data once, and skip it only if the spike comes again.
    skip_before, skip_after: batches left out around a spike; the second attempt leaves out all since the checkpoint and
        twice as much behind, the third begins a checkpoint earlier with four times as much, and multiplies the learning
        rate by `cut`, rising back over `rewarm` updates.
    neighbourhood: updates after a trigger within which another one is the next attempt at the same trouble.
    attempts, attempts_in_run: after so many (in one neighbourhood, in the run) the guard gives up: exit status 3.
    skip_share, skip_batches: and when more than this share of the run's samples, and more than so many batches, would
        be left out. rejected_in_a_row: and, under `skip`, after so many suspects in a row.
    canary: a resume whose first loss differs from the one in the journal is refused.
    """

    policy: Literal["rollback", "skip", "off"] = "rollback"
    window: int = 128
    armed: int = 64
    armed_hard: int = 8
    loss_z: float = 6.0
    loss_floor: float = 0.005
    loss_floor_nats: float = 0.02
    grad_z: float = 8.0
    grad_floor: float = 0.1
    grad_loss_z: float = 2.0
    hard_z: float = 20.0
    in_a_row: int = 3
    hard_in_a_row: int = 2
    several: int = 4
    among: int = 8
    divergence_window: int = 32
    divergence_mads: float = 10.0
    divergence_share: float = 0.1
    margin: int = 16
    horizon: int = 100
    attribute: bool = True
    skip_before: int = 8
    skip_after: int = 8
    cut: float = 0.5
    rewarm: int = 100
    neighbourhood: int = 32
    attempts: int = 3
    attempts_in_run: int = 10
    skip_share: float = 0.01
    skip_batches: int = 64
    rejected_in_a_row: int = 10
    canary: bool = True


@dataclass(frozen=True)
class MeshConfig:
    """How many devices divide what; one of the sizes may be -1: all that are left.

    data: the rows of a microbatch. fsdp: the rows, too, and what is kept: parameters, gradients, optimizer state.
    tensor: heads, MLP features and vocabulary (GPT, BERT, encoder-decoder). sequence: the positions of a row (GPT).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


@dataclass(frozen=True)
class ParallelConfig:
    """The devices of a run. None of these keys changes what is learnt: --resume takes others without --allow-change.

    mesh: as in `parallel.mesh.fsdp=8` or `parallel.mesh=(data=2, fsdp=4)`. Of one process, -1 takes as many devices as
        divide the microbatch.
    form: `mesh` compiles one program for all devices, `pmap` maps the update over those of one process (data only).
    devices: how many are used; 0: all.
    distributed: join the other processes that a cluster (Slurm, Open MPI, Kubernetes, a TPU pod) has started; with
        JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment that happens anyhow.
    heartbeat_seconds: after so long without a sign of one process the others end, too.
    """

    mesh: MeshConfig = field(default_factory=MeshConfig)
    form: Literal["mesh", "pmap"] = "mesh"
    devices: int = 0
    distributed: bool = False
    heartbeat_seconds: int = 100


@dataclass(frozen=True)
class RuntimeConfig:
    """How the machine is used: what must stand before JAX starts, and the last key. What the environment says wins.

    None of these keys changes what is learnt: --resume takes others without --allow-change, as of `parallel`.
    allocator: `pool` has the C library (Linux, glibc) keep the memory of an update for the next, in one pool of all
        threads; `keep` in one for each thread, which is better where an update needs less than 64 MB, and keeps nothing
        larger; `system` leaves it as it is.
    host_devices: so many virtual devices of the CPU, each a part of its threads (0: one device).
    xla_flags: flags of XLA, as in `runtime.xla_flags=[--xla_cpu_max_isa=AVX2]`; one that XLA does not know ends the
        process. gpu_flags: the same, given only where there is a GPU: sends while it computes, and multiplies by
        Triton's kernels where these are faster.
    compilation_cache: the folder of compiled programs, from which the next start takes them (empty: in the user's
        cache folder; `off`: none).
    updates_at_once: so many updates, at most, are sent off to one CPU at once (0: up to 8 where they are small); to
        other devices, or where batches differ in shape (records), always one.
    """

    allocator: Literal["pool", "keep", "system"] = "pool"
    host_devices: int = 0
    xla_flags: tuple[str, ...] = ()
    gpu_flags: tuple[str, ...] = ("--xla_gpu_enable_latency_hiding_scheduler=true", "--xla_gpu_triton_gemm_any=true")
    compilation_cache: str = ""
    updates_at_once: int = 0


@dataclass(frozen=True)
class TrackConfig:
    """Trackers beside metrics.jsonl (extra `[track]`). wandb: the project's name; stays offline without a login."""

    tensorboard: bool = False
    wandb: str = ""


@dataclass(frozen=True)
class Config:
    """A whole run: with `seed` and the journal it determines every bit.

    init_from: whose parameters are taken where the names match: another run, a directory of a Hugging Face model, a
        .gguf or a .safetensors file.
    """

    name: str = "run"
    seed: int = 0
    init_from: str = ""
    data: DataConfig | RecordsConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=GPTConfig)
    objective: CausalConfig | MaskedConfig | TranslationConfig | ClassificationConfig = field(
        default_factory=CausalConfig
    )
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
