//! What a scan leaves: scores, list and report, under the names that Spectrum gives them.

use super::choice::{By, Choice, Chosen};
use super::report::{ReportData, html};
use super::results::Results;
use crate::formats::write_text;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Where everything was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The scores in Spectrum's first layout, and sorted; none where they were read from a file.
    pub scores: Option<[PathBuf; 2]>,
    /// The list of what to train.
    pub list: PathBuf,
    /// The page of charts.
    pub report: PathBuf,
}

/// What Spectrum's file names begin with: `snr_results_` and the model's name with dashes. For a path its last part
/// counts, without `.gguf` or `.safetensors`.
pub fn base_name(model: &str) -> String {
    let path = Path::new(model);
    let name = match path.exists() {
        true => path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())),
        false => None,
    };
    let name = name.unwrap_or_else(|| model.to_owned());
    let ending = [".gguf", ".safetensors"].into_iter().find_map(|ending| name.strip_suffix(ending));
    let plain = |c: char| if c.is_alphanumeric() || c == '.' { c } else { '-' };
    format!("snr_results_{}", ending.unwrap_or(&name).chars().map(plain).collect::<String>())
}

/// Writes into `folder`, which is made if it is not there, each file atomically: the scores if they are `new`, the list
/// and the report.
pub fn write(
    folder: &Path,
    base: &str,
    new: Option<&Results>,
    choice: &Choice,
    chosen: &Chosen,
    data: &ReportData,
) -> Result<Files> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let scores = match new {
        Some(results) => {
            let paths = ["", "_sorted"].map(|ending| folder.join(format!("{base}{ending}.json")));
            results.write(&paths[0])?;
            results.write_sorted(&paths[1])?;
            Some(paths)
        }
        None => None,
    };
    let by = if choice.by == By::Mp { "_mp" } else { "" };
    let list = folder.join(format!("{base}{by}_unfrozenparameters_{}percent.yaml", choice.top_percent));
    write_text(&list, &chosen.yaml())?;
    let report = list.with_extension("html");
    write_text(&report, &html(data, chosen)?)?;
    Ok(Files { scores, list, report })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("my_model");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(base_name(folder.to_str().unwrap()), "snr_results_my-model");
        assert_eq!(base_name(folder.join("../my_model/.").to_str().unwrap()), "snr_results_my-model");
        assert_eq!(base_name("Qwen/Qwen2.5_x"), "snr_results_Qwen-Qwen2.5-x");
        let file = dir.path().join("a.Q4_1.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(base_name(file.to_str().unwrap()), "snr_results_a.Q4-1");
    }
}
