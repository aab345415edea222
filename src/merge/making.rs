//! One tensor of the result: read, merged, rounded to its type.

use super::methods::random_key;
use super::output::bytes;
use super::plan::{Plan, Planned};
use super::reading::Reading;
use super::run::MergeOptions;
use crate::device::Device;
use crate::formats::Dtype;
use crate::{Error, Result};

/// Makes a plan's tensors; any number of threads may at once.
pub(super) struct Making<'a> {
    reading: Reading<'a>,
    options: &'a MergeOptions,
    /// What does the arithmetic; `None` is the processor.
    device: Option<&'a Device>,
}

impl<'a> Making<'a> {
    /// Of the tensors of `plan`, with the arithmetic on `device` where it can do it.
    pub fn new(plan: &'a Plan, options: &'a MergeOptions, device: Option<&'a Device>) -> Making<'a> {
        Making { reading: Reading::new(plan, options.memory), options, device }
    }

    /// Hands the bytes of a tensor to `put`, in order.
    pub async fn tensor(&self, tensor: &Planned, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut written = 0;
        let made = self.reading.with(tensor, self.device, async |inputs| {
            let key = random_key(self.options.seed, &tensor.name);
            let kernel = tensor.method.prepare(inputs, &tensor.settings, key).await?;
            let band = (self.options.memory / 256).clamp(1 << 16, 1 << 22) as usize;
            let finish = |start: usize, values: &[f32]| encode(tensor, start, values);
            let take = |parts: Vec<Vec<u8>>, _| {
                parts.iter().try_for_each(|part| {
                    written += part.len() as u64;
                    put(part)
                })
            };
            inputs.compute(&kernel, band, finish, take).await
        });
        made.await.map_err(|error| error.inside(format!("merging `{}`", tensor.name)))?;
        if written == bytes(tensor) {
            return Ok(());
        }
        Err(Error::internal(format!("{written} bytes of `{}` instead of {}", tensor.name, bytes(tensor))))
    }
}

/// The bytes of `values`, which the type must be able to hold.
fn encode(tensor: &Planned, start: usize, values: &[f32]) -> Result<Vec<u8>> {
    let most = match tensor.dtype {
        Dtype::F16 => 65_519.0,
        Dtype::Bf16 => 3.395e38,
        _ => f32::MAX,
    };
    if let Some(at) = values.iter().position(|x| x.is_nan() || x.abs() > most) {
        let complaint =
            Error::at(format!("value {}", start + at)).expected(format!("a number that {} holds", tensor.dtype));
        return complaint
            .found(values[at])
            .help("set `out_dtype` to `bfloat16` or `float32`, or lower the weights")
            .err();
    }
    let mut bytes = Vec::with_capacity(values.len() * 4);
    tensor.dtype.encode(values, &mut bytes);
    Ok(bytes)
}
