//! `training_args`: the optimisation.

use super::{Length, SAVE_DTYPES, SCHEDULERS, SaveDtype, SchedulerType, TrainingArgs, Warmup, optimiser};
use crate::Result;
use crate::device::Precision;
use crate::yaml::{Gather, Node};

const KEYS: &[&str] = &[
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "min_lr_ratio",
    "weight_decay",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "momentum",
    "layerwise_lr_decay",
    "lr_multipliers",
    "ema_decay",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "eval_steps",
    "eval_samples",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "gradient_checkpointing",
    "bf16",
    "fp16",
    "save_dtype",
];

/// The error lists every value of another type.
pub(super) fn training_args(node: &Node) -> Result<TrainingArgs> {
    let fields = node.clone().fields(KEYS, &[])?;
    let mut keys = Gather::new(&fields);
    let optimiser = optimiser::read(&mut keys);
    let args = TrainingArgs {
        per_device_train_batch_size: keys.or("per_device_train_batch_size", 8, Node::count),
        gradient_accumulation_steps: keys.or("gradient_accumulation_steps", 1, Node::count),
        learning_rate: keys.or("learning_rate", 5e-5, Node::number),
        lr_scheduler_type: keys.or("lr_scheduler_type", SchedulerType::Linear, |n| n.choice(SCHEDULERS)),
        warmup: warmup(&mut keys),
        min_lr_ratio: keys.or("min_lr_ratio", 0.0, Node::number),
        weight_decay: keys.or("weight_decay", 0.0, Node::number),
        optim: optimiser.optim,
        adam_beta1: optimiser.adam_beta1,
        adam_beta2: optimiser.adam_beta2,
        adam_epsilon: optimiser.adam_epsilon,
        momentum: optimiser.momentum,
        layerwise_lr_decay: optimiser.layerwise_lr_decay,
        lr_multipliers: optimiser.lr_multipliers,
        ema_decay: optimiser.ema_decay,
        max_grad_norm: keys.or("max_grad_norm", 1.0, Node::number),
        length: length(&mut keys),
        eval_steps: keys.maybe("eval_steps", Node::integer),
        eval_samples: keys.maybe("eval_samples", Node::count),
        logging_steps: keys.or("logging_steps", 10, Node::integer),
        save_steps: keys.or("save_steps", 500, Node::integer),
        save_total_limit: keys.or("save_total_limit", 2, Node::count),
        gradient_checkpointing: keys.or("gradient_checkpointing", false, Node::boolean),
        precision: precision(&mut keys),
        save_dtype: keys.or("save_dtype", SaveDtype::Float32, |n| n.choice(SAVE_DTYPES)),
    };
    keys.all()?;
    Ok(args)
}

/// What products round their factors to.
fn precision(keys: &mut Gather) -> Precision {
    match [keys.or("bf16", false, Node::boolean), keys.or("fp16", false, Node::boolean)] {
        [false, false] => Precision::F32,
        [true, false] => Precision::Bf16,
        [false, true] => Precision::F16,
        [true, true] => {
            let complaint = keys.complaint("fp16").expected("this or `bf16`").found("both");
            keys.add(complaint.help("leave one out: `bf16` is for CPUs, `fp16` for GPUs"));
            Precision::F32
        }
    }
}

fn warmup(keys: &mut Gather) -> Warmup {
    if keys.has("warmup_steps") && keys.has("warmup_ratio") {
        let complaint = keys.complaint("warmup_ratio").expected("this or `warmup_steps`").found("both");
        keys.add(complaint.help("remove one"));
    }
    let steps = keys.or("warmup_steps", 0, Node::integer);
    keys.maybe("warmup_ratio", Node::number).map_or(Warmup::Steps(steps), Warmup::Ratio)
}

fn length(keys: &mut Gather) -> Length {
    if keys.has("max_steps") == keys.has("num_train_epochs") {
        let found = if keys.has("max_steps") { "both" } else { "neither" };
        let complaint = keys.complaint("max_steps").expected("this or `num_train_epochs`").found(found);
        keys.add(complaint.help("say how long to train by one of them"));
    }
    let epochs = keys.or("num_train_epochs", 0.0, Node::number);
    keys.maybe("max_steps", Node::integer).map_or(Length::Epochs(epochs), Length::Steps)
}
