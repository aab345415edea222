//! What becomes of each key of a DistillKit recipe.

/// What becomes of a key.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    /// Has the same name and meaning here.
    Same,
    /// Read elsewhere in this file.
    Read,
    /// Says how DistillKit is run, not what it computes.
    NoEffect,
    /// Must be absent, null, false, 0, empty: the reason.
    Off(&'static str),
}

use Fate::{NoEffect, Off, Read, Same};

pub(super) type Fates = &'static [(&'static str, Fate)];

pub(super) const ROOT: Fates = &[
    ("project_name", Same),
    ("model", Same),
    ("dataset", Read),
    ("teacher", Read),
    ("sequence_length", Read),
    ("output_path", Same),
    ("resize_embeddings_to_multiple_of", Off("the student keeps its vocabulary: pad its matrices beforehand")),
    ("use_flash_attention", Read),
    ("loss_functions", Read),
    ("layer_mapping", Read),
    ("force_hidden_state_projection", Read),
    ("functionary_packing", NoEffect),
    ("training_args", Read),
    ("model_kwargs", Read),
    ("model_auto_class", Read),
    ("trust_remote_code", NoEffect),
    ("frozen_modules", Read),
    ("frozen_res", Read),
];

pub(super) const DATASET: Fates = &[
    ("train_dataset", Read),
    ("eval_dataset", Read),
    ("seed", Read),
    ("num_samples", Off("there is no drawing of documents: cut the data set beforehand, or set `max_steps`")),
    ("num_eval_samples", Off("there is no drawing of documents: cut the data set beforehand")),
    ("eos_label_token_ids", Off("labels are the text's own tokens")),
    ("prepared_dataset_path", NoEffect),
    ("prepacked", NoEffect),
];

pub(super) const TEACHER: Fates = &[
    ("kind", Read),
    ("path", Read),
    ("kwargs", Read),
    ("top_k", Off("a live teacher is dense: leave `top_k` out, or record it with `potstill capture --top-k`")),
    ("logprob_compressor", Read),
    ("legacy_logit_compression", Read),
];

pub(super) const LOSS: Fates = &[
    ("function", Read),
    ("weight", Read),
    ("temperature", Read),
    ("missing_probability_handling", Read),
    ("sparse_chunk_length", NoEffect),
    ("margin", Read),
];

/// Arguments of `from_pretrained` that choose how a model is held, not what it computes.
pub(super) const MODEL_KWARGS: Fates = &[
    ("torch_dtype", Read),
    ("dtype", Read),
    ("attn_implementation", NoEffect),
    ("device_map", NoEffect),
    ("low_cpu_mem_usage", NoEffect),
    ("trust_remote_code", NoEffect),
    ("use_cache", NoEffect),
];

pub(super) const TRAINING: Fates = &[
    ("per_device_train_batch_size", Same),
    ("gradient_accumulation_steps", Same),
    ("learning_rate", Read),
    ("lr_scheduler_type", Same),
    ("warmup_steps", Read),
    ("warmup_ratio", Read),
    ("weight_decay", Same),
    ("adam_beta1", Same),
    ("adam_beta2", Same),
    ("adam_epsilon", Same),
    ("max_grad_norm", Same),
    ("max_steps", Read),
    ("num_train_epochs", Read),
    ("logging_steps", Same),
    ("eval_strategy", Read),
    ("eval_steps", Read),
    ("save_steps", Same),
    ("save_total_limit", Same),
    ("gradient_checkpointing", Read),
    ("optim", Read),
    ("seed", Read),
    ("max_length", Read),
    ("assistant_only_loss", Read),
    ("completion_only_loss", Read),
    ("bf16", NoEffect),
    ("fp16", NoEffect),
    ("tf32", NoEffect),
    ("bf16_full_eval", NoEffect),
    ("output_dir", NoEffect),
    ("overwrite_output_dir", NoEffect),
    ("report_to", NoEffect),
    ("run_name", NoEffect),
    ("logging_dir", NoEffect),
    ("logging_strategy", NoEffect),
    ("logging_first_step", NoEffect),
    ("log_level", NoEffect),
    ("disable_tqdm", NoEffect),
    ("save_strategy", NoEffect),
    ("save_safetensors", NoEffect),
    ("save_only_model", NoEffect),
    ("remove_unused_columns", NoEffect),
    ("dataloader_num_workers", NoEffect),
    ("dataloader_pin_memory", NoEffect),
    ("dataloader_prefetch_factor", NoEffect),
    ("dataloader_persistent_workers", NoEffect),
    ("dataset_num_proc", NoEffect),
    ("dataset_kwargs", NoEffect),
    ("dataset_text_field", NoEffect),
    ("packing", NoEffect),
    ("eval_packing", NoEffect),
    ("per_device_eval_batch_size", NoEffect),
    ("gradient_checkpointing_kwargs", NoEffect),
    ("torch_compile", NoEffect),
    ("use_liger_kernel", NoEffect),
    ("deepspeed", NoEffect),
    ("fsdp", NoEffect),
    ("fsdp_config", NoEffect),
    ("ddp_find_unused_parameters", NoEffect),
    ("ddp_timeout", NoEffect),
    ("torch_empty_cache_steps", NoEffect),
    ("include_tokens_per_second", NoEffect),
    ("include_num_input_tokens_seen", NoEffect),
    ("average_tokens_across_devices", NoEffect),
    ("resume_from_checkpoint", NoEffect),
    ("do_train", NoEffect),
    ("do_eval", NoEffect),
    ("push_to_hub", Off("nothing is uploaded here: upload the student's folder afterwards")),
    ("load_best_model_at_end", Off("the last weights are saved")),
    ("label_smoothing_factor", Off("write it into `cross_entropy` of a recipe of potstill's own")),
    ("neftune_noise_alpha", Off("there is no noise on embeddings")),
    ("group_by_length", Off("sequences are packed to one length")),
    ("lr_scheduler_kwargs", Off("schedules have no further arguments")),
    ("auto_find_batch_size", Off("memory is planned before the run: choose the batch size")),
];

/// AdamW by the names it has in transformers; those with another state go by ours.
pub(super) const OPTIMISERS: &[(&str, Option<&str>)] = &[
    ("adamw_torch", None),
    ("adamw_torch_fused", None),
    ("adamw_hf", None),
    ("adamw_apex_fused", None),
    ("paged_adamw", None),
    ("paged_adamw_32bit", None),
    ("adamw_8bit", Some("adamw_8bit")),
    ("adamw_bnb_8bit", Some("adamw_8bit")),
    ("paged_adamw_8bit", Some("adamw_8bit")),
    ("lion", Some("lion")),
    ("lion_32bit", Some("lion")),
    ("paged_lion_32bit", Some("lion")),
    ("sgd", Some("sgd")),
];
