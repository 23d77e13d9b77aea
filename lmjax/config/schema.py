"""The schema of a run: small frozen dataclasses, one per concern.

A configuration is complete and typed: every setting is a field below. `lmjax.config.codec` changes fields from
`a.b=value` strings and converts to JSON and back, exactly.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lmjax.config.chat import AnyDataConfig
from lmjax.config.data import DataConfig
from lmjax.config.models import GPTConfig, ModelConfig
from lmjax.config.objectives import CausalConfig, ObjectiveConfig
from lmjax.config.ranges import (
    OrInteger,
    at_least,
    axis_size,
    batch_points,
    compiler_flags,
    device_count,
    distinct_counts,
    expected_results,
    folder_name,
    interval,
    nonnegative,
    positive,
    rate_cuts,
    rate_extensions,
    share,
    size,
    span,
)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer; the defaults are those of GPT-3 (appendix B) and LLaMA (section 2.3)."""

    #: Update rule, or the name of a registered one. Muon updates the matrices; AdamW updates the remaining parameters.
    name: Literal["adamw", "adam", "lion", "adafactor", "muon"] | str = "adamw"
    #: Decay of the first moment.
    beta1: Annotated[float, interval("[0, 1)")] = 0.9
    #: Decay of the second moment.
    beta2: Annotated[float, interval("[0, 1)")] = 0.95
    #: Term added to the denominator of the update.
    epsilon: Annotated[float, positive()] = 1e-8
    #: Decoupled weight decay. Biases, norms and embeddings are exempt, by name.
    weight_decay: Annotated[float, nonnegative()] = 0.1
    #: Maximum global norm of the gradient (0: no clipping).
    clip: Annotated[float, nonnegative()] = 1.0
    #: Decay of an exponential moving average of the parameters, which evaluation then uses (0: none).
    ema: Annotated[float, interval("[0, 1)")] = 0.0
    #: Limit the decay of the average to (1 + n) / (10 + n) after n updates, so that it soon forgets the initial
    #: parameters. False in files that set `ema` and are older than this key: their runs keep their bits.
    ema_warmup: bool = True
    #: Learning rate of Muon's matrices as a multiple of the schedule's rate.
    muon_learning_rate_ratio: Annotated[float, positive()] = 1.0
    #: Momentum of Muon's matrices. A run of a few hundred updates learns faster with less.
    muon_momentum: Annotated[float, interval("[0, 1)")] = 0.95
    #: Patterns of parameter paths (`blocks/attention/query/kernel`); matching parameters are not updated.
    freeze: tuple[str, ...] = ()

    @staticmethod
    def upgrade(tree: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON object of a file with the key that an older file lacks."""
        return tree if "ema_warmup" in tree or not tree.get("ema") else tree | {"ema_warmup": False}


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run."""

    #: Highest learning rate.
    peak: Annotated[float, positive()] = 6e-4
    #: Share of the run in which the rate rises linearly to `peak`. The rate of the first update is never zero.
    warmup: Annotated[float, share()] = 0.005
    #: Shape after the warmup, or the name of a registered one. `wsd` holds the peak and decays linearly over the last
    #: `decay` share of the run. `range` rises exponentially from `final` x `peak` to `peak`, to find a learning rate.
    shape: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant", "range"] | str = "cosine"
    #: Rate at the end as a share of the peak (not used by `constant` and `inverse_sqrt`).
    final: Annotated[float, share()] = 0.1
    #: Share of the run in which `wsd` decays.
    decay: Annotated[float, share()] = 0.2
    #: Unit of progress: updates or tokens. The two differ while the batch grows.
    unit: Literal["updates", "tokens"] = "tokens"
    #: Temporary reductions, ((update, factor, over), ...). At `update` the rate drops to `factor` of the schedule's
    #: rate and returns to the full rate over `over` updates. The guard adds one when skipping data does not help.
    cuts: Annotated[tuple[tuple[int, float, int], ...], rate_cuts()] = ()
    #: How a resume that makes the run longer continues. `keep`: with the rates that the run would have if it had always
    #: had its new length; the rate changes at once. `rewarm`: rise from the rate of the last update to `peak` over
    #: `warmup` of the remaining run, then fall over the rest of it. `restart`: the complete schedule over the remaining
    #: run, from its first rate.
    on_extend: Literal["keep", "rewarm", "restart"] = "keep"
    #: Where the schedule starts again, ((update, updates, how), ...): at `update` (counted from 0) a run of `updates`
    #: was made longer, and the schedule starts again by `rewarm` or `restart`. A resume adds an entry according to
    #: `on_extend`.
    extended: Annotated[tuple[tuple[int, int, str], ...], rate_extensions()] = ()


@dataclass(frozen=True)
class BatchConfig:
    """Tokens per update, growing with the tokens seen, in equal microbatches."""

    #: Batch size in tokens over the run: a number, or ((from_token, batch_tokens), ...) if it grows.
    tokens: Annotated[tuple[tuple[int, int], ...], batch_points(), OrInteger] = ((0, 32_768),)
    #: Growth between the points of `tokens`: a jump at each point, or a linear rise between the points.
    growth: Literal["steps", "linear"] = "steps"
    #: Sequences computed at a time over all devices. Batch growth changes only the number of accumulated
    #: microbatches, so it never causes a new compilation.
    microbatch: Annotated[int, size(1)] = 32

    def __post_init__(self) -> None:
        tokens: Any = self.tokens
        if type(tokens) is int:
            object.__setattr__(self, "tokens", ((0, tokens),))


@dataclass(frozen=True)
class TrainConfig:
    """The length of the run, and its evaluations, logs and samples."""

    #: Number of optimizer updates (0: as many as `tokens` or `epochs` need). On the command line, one of the three
    #: replaces the others.
    updates: Annotated[int, size(0)] = 0
    #: Number of training tokens; used if `updates` is 0.
    tokens: Annotated[int, at_least(0)] = 0
    #: Updates between evaluations (0: evaluate at the end only).
    evaluate_every: Annotated[int, size(0)] = 0
    #: Microbatches of the validation split per evaluation during the run (0: the complete split).
    evaluate_batches: Annotated[int, size(0)] = 0
    #: Microbatches of the validation split in the last evaluation (0: the complete split).
    final_batches: Annotated[int, size(0)] = 0
    #: Updates between logged lines.
    log_every: Annotated[int, size(0)] = 1
    #: Length in tokens of the sample that is generated at the end (0: none).
    sample_tokens: Annotated[int, size(0)] = 200
    #: Prompt of the sample.
    sample_prompt: str = ""
    #: Evaluations during the run between samples that are written to `samples.jsonl` (0: only the one at the end).
    sample_every: Annotated[int, size(0)] = 0
    #: Expected results, ((metric, from, to), ...), such as ("val_bits_per_byte", 1.6, 1.8). The report shows them
    #: next to the results of the run.
    expect: Annotated[tuple[tuple[str, float, float], ...], expected_results()] = ()
    #: First and last update of a `jax.profiler` trace, counted from 1 (empty: no trace).
    profile: Annotated[tuple[int, ...], span()] = ()
    #: Registered metrics to compute at each evaluation; each is recorded as `val_NAME`.
    metrics: tuple[str, ...] = ()
    #: Registered callbacks to call on updates, evaluations, checkpoints and at the end.
    callbacks: tuple[str, ...] = ()
    #: Measure the byte unigram and the Kneser-Ney 5-gram on the same split at the end.
    baselines: bool = True
    #: Number of passes over the training data, also a fraction (0: `updates` or `tokens` give the length). A pass of a
    #: mixture has as many tokens as all of its sources together.
    epochs: Annotated[float, nonnegative()] = 0.0
    #: Training tokens of one pass. A run with `epochs` takes it from the data, whatever is given here.
    epoch_tokens: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class EvaluateConfig:
    """In-context evaluation at every evaluation of the run.

    It records the metrics `val_TASK_SHOTS_shot` and draws them. Where `data.in_context` renders the task, only the
    items that it holds out are evaluated.
    """

    #: Bundled tasks or folders of tasks (empty: no in-context evaluation).
    tasks: tuple[str, ...] = ()
    #: Numbers of examples in the prompt; each is evaluated.
    shots: Annotated[tuple[int, ...], distinct_counts()] = (0, 1, 8)
    #: Maximum number of documents of each task.
    limit: Annotated[int, size(1)] = 100


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are saved and retained.

    Update 0 and two healthy checkpoints are always retained.
    """

    #: Updates between checkpoints (0: one at the end only).
    every: Annotated[int, size(0)] = 0
    #: Number of most recent checkpoints to retain.
    keep: Annotated[int, size(1)] = 3
    #: Also retain the checkpoint of every K-th update (0: none).
    keep_every: Annotated[int, size(0)] = 0
    #: Also retain the checkpoint with the lowest `val_loss`, which counts the sources of a mixture by their size, not
    #: by their weight.
    keep_best: bool = True
    #: Number of consecutive failed saves that are tried again, each at the next update.
    retries: Annotated[int, size(0)] = 2
    #: Action after the last retry: `stop` ends the run with exit status 1 (older checkpoints remain), `continue`
    #: trains on without a checkpoint.
    on_failure: Literal["stop", "continue"] = "stop"


@dataclass(frozen=True)
class GuardConfig:
    """The detection of loss spikes and the reaction to them.

    z is the distance from the median of the accepted values in a window, in robust standard deviations (1.4826 MAD).
    A suspect batch is not applied and does not enter the window. A regime is the part of a run between announced
    changes (batch size, mixture).
    """

    #: Reaction: `rollback` returns to a healthy checkpoint and skips the data, `skip` only omits suspect batches,
    #: `off` applies every batch. All three are bit-identical as long as no batch is suspect.
    policy: Literal["rollback", "skip", "off"] = "rollback"
    #: Number of accepted losses and log gradient norms in the window.
    window: Annotated[int, size(0, 1_000_000)] = 128
    #: Accepted values needed before a batch can be suspect. The count restarts with each regime.
    armed: Annotated[int, size(0)] = 64
    #: Accepted values needed before a batch can be a hard suspect. The count restarts with each regime.
    armed_hard: Annotated[int, size(2)] = 8
    #: z of the loss above which a batch is suspect.
    loss_z: Annotated[float, at_least(0)] = 6.0
    #: Lower bound of the deviation, as a share of the median loss.
    loss_floor: Annotated[float, at_least(0)] = 0.005
    #: Lower bound of the deviation in nats. Losses near zero, of data that is learned completely, differ by large
    #: factors.
    loss_floor_nats: Annotated[float, at_least(0)] = 0.02
    #: z of the log gradient norm above which a batch is suspect, if its loss is also above `grad_loss_z`.
    grad_z: Annotated[float, at_least(0)] = 8.0
    #: Lower bound of the deviation of the log gradient norm.
    grad_floor: Annotated[float, at_least(0)] = 0.1
    #: z of the loss that a suspect gradient norm also needs.
    grad_loss_z: Annotated[float, at_least(0)] = 2.0
    #: z above which a suspect is hard. A suspect whose values are not finite is always hard.
    hard_z: Annotated[float, at_least(0)] = 20.0
    #: Consecutive suspects that trigger a rollback. Parameters that are not finite trigger one immediately.
    in_a_row: Annotated[int, size(1)] = 3
    #: Consecutive hard suspects that trigger a rollback.
    hard_in_a_row: Annotated[int, size(1)] = 2
    #: Suspects among the last `among` batches that trigger a rollback.
    several: Annotated[int, size(1)] = 4
    #: Number of last batches in which `several` counts suspects.
    among: Annotated[int, size(1)] = 8
    #: Number of last losses whose median is compared with the best such median.
    divergence_window: Annotated[int, size(2)] = 32
    #: MADs (each at least `loss_floor_nats`) by which the median must exceed the best one to trigger a rollback.
    divergence_mads: Annotated[float, at_least(0)] = 10.0
    #: Share of the best median by which the median must also exceed it.
    divergence_share: Annotated[float, at_least(0)] = 0.1
    #: Updates before a checkpoint without a suspect that make it healthy. A rollback takes the newest healthy
    #: checkpoint that is at least `margin` updates before the onset.
    margin: Annotated[int, size(0)] = 16
    #: Updates after a checkpoint without a suspect that make it healthy; at most checkpoint.every.
    horizon: Annotated[int, size(0)] = 100
    #: Replay the same data once, and skip it only if the spike recurs.
    attribute: bool = True
    #: Batches to skip before a spike in the first attempt. The second attempt skips everything since the checkpoint;
    #: the third starts from the checkpoint before that.
    skip_before: Annotated[int, size(0)] = 8
    #: Batches to skip after a spike in the first attempt; twice as many in the second, four times in the third.
    skip_after: Annotated[int, size(0)] = 8
    #: Factor of the learning rate in the third attempt.
    cut: Annotated[float, interval("(0, 1]")] = 0.5
    #: Updates over which the learning rate returns to the full rate after a cut.
    rewarm: Annotated[int, size(1)] = 100
    #: Updates after a trigger within which another trigger counts as the next attempt at the same spike.
    neighbourhood: Annotated[int, size(0)] = 32
    #: Attempts at the same spike after which the guard stops the run with exit status 3.
    attempts: Annotated[int, size(0)] = 3
    #: Attempts in the run after which the guard stops it with exit status 3.
    attempts_in_run: Annotated[int, size(0)] = 10
    #: The guard also stops the run if it would skip more than this share of the samples and `skip_batches` batches.
    skip_share: Annotated[float, at_least(0)] = 0.01
    #: Number of skipped batches up to which `skip_share` is ignored.
    skip_batches: Annotated[int, size(0)] = 64
    #: Consecutive suspects after which the guard stops a run with `policy=skip` (0: it never stops the run).
    rejected_in_a_row: Annotated[int, size(0)] = 10
    #: Refuse a resume whose first loss differs from the loss in the journal.
    canary: bool = True


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are divided among the axes. One size may be -1: all remaining devices."""

    #: Devices that divide the rows of a microbatch.
    data: Annotated[int, axis_size()] = -1
    #: Devices that divide the rows and also the parameters, gradients and optimizer state.
    fsdp: Annotated[int, axis_size()] = 1
    #: Devices that divide heads, MLP features and vocabulary (GPT, BERT, encoder-decoder).
    tensor: Annotated[int, axis_size()] = 1
    #: Devices that divide the positions of a row (GPT).
    sequence: Annotated[int, axis_size()] = 1


@dataclass(frozen=True)
class ParallelConfig:
    """The devices of a run.

    No key of this group changes what is learned: --resume accepts other values without --allow-change.
    """

    #: Device mesh, as in `parallel.mesh.fsdp=8` or `parallel.mesh=(data=2, fsdp=4)`. With one process, -1 takes as
    #: many devices as divide the microbatch.
    mesh: MeshConfig = field(default_factory=MeshConfig)
    #: `mesh` compiles one program for all devices; `pmap` maps the update over the devices of one process (data only).
    form: Literal["mesh", "pmap"] = "mesh"
    #: Number of devices to use (0: all).
    devices: Annotated[int, size(0)] = 0
    #: Join the other processes that a cluster (Slurm, Open MPI, Kubernetes, a TPU pod) starts. The processes also join
    #: if the environment has JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    distributed: bool = False
    #: Seconds without a heartbeat of one process after which the others end, too.
    heartbeat_seconds: Annotated[int, size(1)] = 100


@dataclass(frozen=True)
class RuntimeConfig:
    """How the run uses the machine. Variables of the environment take precedence.

    No key of this group changes what is learned: --resume accepts other values without --allow-change. All but
    `updates_at_once` take effect before JAX starts.
    """

    #: Memory of the C library (Linux, glibc). `pool` retains the memory of an update for the next one, in one pool of
    #: all threads. `keep` retains it in one pool per thread, but no block above 64 MB; it is better for updates that
    #: need less. `system` changes nothing.
    allocator: Literal["pool", "keep", "system"] = "pool"
    #: Number of virtual CPU devices, each with a part of the threads (0: one device).
    host_devices: Annotated[int, device_count()] = 0
    #: Flags of XLA, as in `runtime.xla_flags=[--xla_cpu_max_isa=AVX2]`. XLA ends the process at an unknown flag.
    xla_flags: Annotated[tuple[str, ...], compiler_flags()] = ()
    #: Flags of XLA for machines with a GPU. The defaults overlap communication with computation, and use Triton's
    #: matrix products where they are faster.
    gpu_flags: Annotated[tuple[str, ...], compiler_flags()] = (
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_triton_gemm_any=true",
    )
    #: Folder of compiled programs, which the next start reuses (empty: in the user's cache folder; `off`: none).
    compilation_cache: str = ""
    #: Maximum number of updates dispatched to one CPU at a time (0: up to 8 if they are small). Other devices, and
    #: batches of different shapes (records), always take one.
    updates_at_once: Annotated[int, size(0, 4096)] = 0


@dataclass(frozen=True)
class TrackConfig:
    """Trackers in addition to metrics.jsonl (extra `[track]`)."""

    #: Write TensorBoard event files.
    tensorboard: bool = False
    #: Name of a Weights & Biases project (empty: none). Without a login the run stays offline.
    wandb: str = ""


@dataclass(frozen=True)
class Config:
    """A complete run: the configuration, with `seed` and the journal, determines every bit."""

    #: Name of the run, and of its folder in `runs/`.
    name: Annotated[str, folder_name()] = "run"
    #: Seed of all random numbers: initial parameters, order of the data, dropout.
    seed: Annotated[int, at_least(0)] = 0
    #: Initial parameters, copied where the names match: a run, a directory of a Hugging Face model, or a .gguf or
    #: .safetensors file (empty: random).
    init_from: str = ""
    #: Python files that add model families, objectives, optimizers and the like. A run records each as
    #: `PATH#sha256=HASH`, together with the files of the same folder that it imports.
    extensions: tuple[str, ...] = ()
    #: What is read: text, records or conversations.
    data: AnyDataConfig = field(default_factory=DataConfig)
    #: The model; `model.family` selects its kind.
    model: ModelConfig = field(default_factory=GPTConfig)
    #: What the model learns; `objective.family` selects it.
    objective: ObjectiveConfig = field(default_factory=CausalConfig)
    #: The optimizer.
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    #: The learning rate.
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    #: The batch size.
    batch: BatchConfig = field(default_factory=BatchConfig)
    #: Length, evaluations and logs.
    train: TrainConfig = field(default_factory=TrainConfig)
    #: In-context evaluation.
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    #: Checkpoints.
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    #: Detection of loss spikes.
    guard: GuardConfig = field(default_factory=GuardConfig)
    #: Devices and processes.
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    #: Use of the machine.
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    #: External trackers.
    track: TrackConfig = field(default_factory=TrackConfig)
