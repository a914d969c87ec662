//! Files of others, laid out as a bundle.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::METADATA_FILE;
use crate::kind::has_extension;
use crate::metadata::Metadata;
use crate::path::ComponentPath;

/// Why there is no bundle.
pub(super) enum ArrangeError {
    /// Something cannot be written or copied.
    Io { path: String, error: io::Error },
    /// Two files would have this place.
    Twice { path: String },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ArrangeError + '_ {
    move |error| ArrangeError::Io {
        path: path.display().to_string(),
        error,
    }
}

/// Copies files, by their path where they come from, into the new folder `dir`, in the native layout, with a `metadata.json`.
pub(super) fn arrange<'a>(
    files: impl Iterator<Item = (&'a ComponentPath, &'a Path)> + Clone,
    dir: &Path,
    metadata: &Metadata,
) -> Result<(), ArrangeError> {
    let adapter = files
        .clone()
        .any(|(path, _)| path.as_str() == "adapter_config.json");
    let mut places = BTreeMap::new();
    for (path, location) in files {
        let place = place(path.as_str(), adapter);
        if places.insert(place.clone(), location).is_some() {
            return Err(ArrangeError::Twice { path: place });
        }
    }
    fs::create_dir(dir).map_err(io_error(dir))?;
    for (place, location) in places {
        let target = dir.join(&place);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(io_error(parent))?;
        }
        // The copy shares blocks where the file system can, and is never a link into a cache.
        fs::copy(location, &target).map_err(io_error(&target))?;
    }
    let path = dir.join(METADATA_FILE);
    let written =
        File::create_new(&path).and_then(|mut f| f.write_all(metadata.to_pretty().as_bytes()));
    written.map_err(io_error(&path))
}

/// Where a file of a repository lies in the native layout.
fn place(path: &str, adapter: bool) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is = |extensions: &[&str]| extensions.iter().any(|e| has_extension(name, e));
    let record = ["README", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY"]
        .iter()
        .any(|r| name.to_ascii_uppercase().starts_with(r));
    // Tensors of an ONNX model in files of their own: `model.onnx_data`, `model.onnx.data`.
    let external = name.contains(".onnx_data") || is(&["data"]);
    if path.contains('/') {
        // Folders of a repository keep their shape.
        return if external || is(&["safetensors", "bin", "gguf", "onnx", "pt", "pth"]) {
            format!("model/weights/{path}")
        } else {
            format!("model/files/{path}")
        };
    }
    if adapter && name.starts_with("adapter_") {
        return format!("model/adapters/{name}");
    }
    if record && name.starts_with("USE_POLICY") {
        return format!("tests/{name}");
    }
    if record || name == ".gitattributes" || name == ".gitignore" {
        return name.to_owned();
    }
    let tokenizer = name.starts_with("tokenizer")
        || name.starts_with("chat_template")
        || [
            "vocab.json",
            "vocab.txt",
            "merges.txt",
            "special_tokens_map.json",
            "added_tokens.json",
            "spiece.model",
            "sentencepiece.bpe.model",
        ]
        .contains(&name);
    if tokenizer {
        format!("model/tokenizer/{name}")
    } else if is(&[
        "safetensors",
        "bin",
        "gguf",
        "onnx",
        "pt",
        "pth",
        "ckpt",
        "h5",
        "msgpack",
    ]) || external
        || name.ends_with(".index.json")
    {
        format!("model/weights/{name}")
    } else if is(&["json", "py"]) {
        format!("model/{name}")
    } else {
        format!("model/files/{name}")
    }
}
