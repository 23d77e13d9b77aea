"""Advice for an unknown key: names of other tools, and near misspellings."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from lmjax.config.errors import CLOSE, any_of

# Names in nanoGPT, Hugging Face (TrainingArguments, configurations of models, TRL), PyTorch, MaxText, Levanter and
# Megatron, and what to use here: keys, and a clause where the units differ.
_GROUPS = (
    ("lr learning_rate max_lr base_lr peak_lr initial_lr", "schedule.peak"),
    ("min_lr final_lr end_lr min_learning_rate", "schedule.final (a share of schedule.peak)"),
    ("min_lr_ratio lr_min_ratio cosine_learning_rate_final_fraction", "schedule.final"),
    (
        "warmup_steps warmup_iters lr_warmup_iters num_warmup_steps",
        "schedule.warmup (a share of the run, not a number)",
    ),
    ("warmup_ratio warmup_steps_fraction lr_warmup_fraction warmup_fraction", "schedule.warmup"),
    ("lr_scheduler_type lr_schedule lr_decay_style lr_scheduler scheduler learning_rate_schedule", "schedule.shape"),
    ("decay_lr", "schedule.shape (constant: no decay)"),
    ("lr_decay_iters lr_decay_steps", "train.updates (the schedule ends with the run)"),
    (
        "batch_size train_batch_size total_batch_size global_batch_size mini_batch_size",
        "batch.tokens (tokens of an update) and batch.microbatch (sequences computed at a time, over all devices)",
    ),
    (
        "per_device_train_batch_size per_device_batch_size per_device_parallelism micro_batch_size microbatch_size",
        "batch.microbatch (sequences over all devices)",
    ),
    ("per_device_eval_batch_size eval_batch_size", "batch.microbatch (sequences over all devices, in evaluations too)"),
    (
        "gradient_accumulation_steps grad_accum grad_accum_steps grad_acc accumulate_grad_batches",
        "batch.tokens and batch.microbatch (an update accumulates as many microbatches as its tokens need)",
    ),
    ("max_steps max_iters num_train_steps train_iters train_steps num_steps steps iters iterations", "train.updates"),
    ("num_train_epochs num_epochs n_epochs max_epochs epoch", "train.epochs"),
    ("max_tokens train_tokens num_tokens total_tokens", "train.tokens"),
    ("n_layer n_layers num_layers num_hidden_layers depth base_num_decoder_layers", "model.layers"),
    ("n_embd hidden_size d_model dim hidden_dim emb_dim embed_dim embedding_size base_emb_dim", "model.width"),
    ("n_head n_heads num_heads num_attention_heads base_num_query_heads", "model.heads"),
    (
        "num_key_value_heads n_kv_head n_kv_heads num_kv_heads num_query_groups base_num_kv_heads kv_heads",
        "model.key_heads",
    ),
    ("head_size kv_channels", "model.head_dim"),
    ("intermediate_size ffn_hidden_size n_inner d_ff ffn_dim mlp_dim base_mlp_dim", "model.mlp_width"),
    (
        "block_size seq_len seq_length sequence_length max_seq_len max_seq_length max_length max_position_embeddings "
        "n_positions n_ctx context_length context_size ctx_len max_target_length",
        "model.context",
    ),
    (
        "vocab vocab_size vocabulary vocabulary_size n_vocab padded_vocab_size",
        "data.tokenizer.vocab_size (model.vocab_size follows it)",
    ),
    ("tie_word_embeddings tie_embeddings tied_embeddings weight_tying", "model.tied"),
    ("untie_embeddings_and_output_weights", "model.tied=false"),
    ("hidden_act hidden_activation activation_function act_fn", "model.activation"),
    ("normalization norm_type", "model.norm"),
    ("rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps layernorm_epsilon", "model.norm_epsilon"),
    ("position_embedding_type pos_emb rope use_rotary", "model.positions"),
    ("rotary_base rope_base rope_max_timescale", "model.rope_theta"),
    ("initializer_range init_method_std initializer_std", "model.init_std"),
    ("attention_bias use_bias add_bias_linear mlp_bias", "model.bias"),
    ("attn_implementation attn_impl flash flash_attention flash_attn attn_backend", "model.attention"),
    (
        "resid_pdrop embd_pdrop attn_pdrop hidden_dropout hidden_dropout_prob attention_dropout "
        "attention_probs_dropout_prob dropout_rate",
        "model.dropout",
    ),
    ("bf16 fp16 fp32 precision mixed_precision torch_dtype amp mp", "model.dtype (float32 or bfloat16)"),
    ("gradient_checkpointing activation_checkpointing recompute_granularity remat_policy", "model.remat"),
    ("wd decay_weight", "optimizer.weight_decay"),
    ("adam_beta1 adam_b1 b1", "optimizer.beta1"),
    ("adam_beta2 adam_b2 b2", "optimizer.beta2"),
    ("betas adam_betas", "optimizer.beta1 and optimizer.beta2"),
    ("eps adam_eps adam_epsilon", "optimizer.epsilon"),
    ("grad_clip max_grad_norm clip_grad gradient_clipping clip_norm gradient_clip_val", "optimizer.clip"),
    ("optim opt_type optimizer_name optimizer_type", "optimizer.name"),
    ("ema_decay ema_beta", "optimizer.ema"),
    ("freeze_layers frozen", "optimizer.freeze (patterns of parameter paths)"),
    ("label_smoothing_factor", "objective.label_smoothing"),
    ("z_loss_weight z_loss_multiplier", "objective.z_loss"),
    ("mlm_probability masked_lm_prob mask_rate masking_rate mask_prob", "objective.rate (of objective.family=masked)"),
    ("eval_interval eval_steps eval_every val_check_interval steps_per_eval", "train.evaluate_every (updates)"),
    (
        "eval_iters max_eval_batches val_iters limit_val_batches",
        "train.evaluate_batches (microbatches of the validation split)",
    ),
    ("logging_steps log_interval log_steps log_period", "train.log_every (updates)"),
    ("save_steps save_interval save_every checkpoint_interval checkpoint_period", "checkpoint.every (updates)"),
    ("save_total_limit max_checkpoints keep_last", "checkpoint.keep"),
    ("load_best_model_at_end save_best", "checkpoint.keep_best (and --checkpoint best of generate and evaluate)"),
    ("output_dir out_dir run_dir save_dir checkpoint_dir base_output_directory logging_dir", "--run-dir DIR"),
    ("resume resume_from resume_from_checkpoint load_checkpoint load_checkpoint_path", "--resume DIR"),
    (
        "model_name model_name_or_path pretrained from_pretrained initialize_from initialize_from_hf load",
        "init_from (a run, a downloaded folder, or a file of weights)",
    ),
    ("random_seed rng_seed data_seed", "seed"),
    ("run_name wandb_run_name experiment_name", "name"),
    ("wandb_project wandb_log report_to use_wandb", "track.wandb (the name of a project) or track.tensorboard=true"),
    ("tensorboard_dir use_tensorboard", "track.tensorboard"),
    ("dataset dataset_name dataset_path", "data.source (hub:NAME of a dataset, or one of lmjax's own) or data.files"),
    ("train_file train_files data_path data_dir train_urls train_data input_file dataset_file", "data.files"),
    ("validation_file val_file eval_file test_file val_data", "data.validation_files (not of data.family=text)"),
    ("val_split validation_split validation_split_percentage val_fraction test_size", "data.validation_fraction"),
    ("tokenizer tokenizer_name tokenizer_path tokenizer_file", "data.tokenizer.path, with data.tokenizer.kind=file"),
    ("tokenizer_type", "data.tokenizer.kind"),
    ("packing sample_packing", "data.packed"),
    ("chat_template", "data.template"),
    ("text_column dataset_text_field content_field", "data.text_field"),
    ("max_train_samples num_samples", "data.limit (not of data.family=text)"),
    ("cache_dir", "data.cache"),
    ("beta", "objective.beta (of objective.family=dpo)"),
    ("loss_type", "objective.loss (of objective.family=dpo)"),
    ("kl_coef init_kl_coef kl_beta kl_penalty", "objective.kl_coefficient (of objective.family=grpo or ppo)"),
    ("num_generations group_size num_samples_per_prompt", "objective.group (answers to a prompt, of grpo and ppo)"),
    (
        "max_completion_length max_new_tokens response_length",
        "objective.answer_tokens (or --max-tokens of lmjax generate)",
    ),
    ("cliprange clip_range", "objective.clip_low and objective.clip_high (of objective.family=grpo or ppo)"),
    ("gae_lambda lam", "objective.decay (of objective.family=ppo)"),
    ("num_ppo_epochs ppo_epochs num_iterations", "objective.epochs (of objective.family=grpo or ppo)"),
    ("fsdp_axis fsdp ici_fsdp_parallelism zero_stage", "parallel.mesh.fsdp"),
    ("tensor_parallel tensor_model_parallel_size ici_tensor_parallelism tp model_axis_size", "parallel.mesh.tensor"),
    ("data_parallel dp ici_data_parallelism", "parallel.mesh.data"),
    ("context_parallel_size sequence_parallel sp ici_sequence_parallelism", "parallel.mesh.sequence"),
    ("device n_devices num_devices n_gpu devices_per_node gpus num_gpus", "parallel.devices"),
    (
        "compile torch_compile dataloader_num_workers num_workers",
        "nothing: leave it out; lmjax compiles and prefetches",
    ),
    ("profile_steps profiler", "train.profile (the first and the last update)"),
)

#: Name in another tool -> what to use here.
SYNONYMS = {name: target for names, target in _GROUPS for name in names.split()}
_MOST = 4  # keys in an answer


def advice(key: str, own: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """Return the end of the message about an unknown key: what to use in its place.

    Args:
        key: The unknown key.
        own: The keys of the configuration.
        elsewhere: Keys of other families, with the settings that select these (`model.family=rnn`).
    """
    group, _, last = key[:100].rpartition(".")
    if key in elsewhere:
        return f"; it is a key of {settings(elsewhere[key])}, which this configuration does not have"
    if target := SYNONYMS.get(re.sub(r"\W", "_", last.lower()).strip("_")):
        return f"; use {target}"
    near = _near(group, last, own)
    if near:
        return f"; did you mean {any_of(map(repr, near[:_MOST]))}?"
    others = [name for name in elsewhere if _last(name) == last][:1]
    if others:
        return f"; did you mean '{others[0]}' (a key of {settings(elsewhere[others[0]])})?"
    return "; `lmjax explain` lists the keys"


def _near(group: str, last: str, own: Sequence[str]) -> list[str]:
    """Return similar keys: those of the same group, else of all groups.

    Only the last components are compared: a common group makes no two keys similar.
    """
    inside = [name for name in own if name.startswith(f"{group}.")] if group else []
    endings = [name for name in inside if last and name.endswith(f"_{last}")]  # train.every: train.log_every
    return _similar(last, inside) or endings or _similar(last, own)


def _similar(last: str, names: Sequence[str]) -> list[str]:
    lasts = list(map(_last, names))
    close = [last] if last in lasts else difflib.get_close_matches(last, lasts, _MOST, CLOSE)
    return [name for word in dict.fromkeys(close) for name in names if _last(name) == word]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def settings(choices: Iterable[str]) -> str:
    """Return `model.family=rnn or bert` of settings of one key."""
    choices = list(choices)
    key = choices[0].partition("=")[0]
    return f"{key}={any_of(dict.fromkeys(choice.partition('=')[2] for choice in choices))}"
