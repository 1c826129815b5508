//! Where the weights are.

use std::env::var_os;
use std::path::PathBuf;

use super::Result;

/// A file of a model that `fetch_models.py` fetched.
pub(crate) fn find(model: &str, file: &str) -> Result<PathBuf> {
    let path = folder().join(model).join(file);
    if path.exists() {
        return Ok(path);
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/fetch_models.py");
    Err(format!("{} is not there; fetch it with\n    python3 {script} {model}", path.display())
        .into())
}

fn folder() -> PathBuf {
    let set = |name| var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HEADWISE_MODELS").unwrap_or_else(|| {
        let home = || set("HOME").or_else(|| set("USERPROFILE")).unwrap_or_default();
        set("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("headwise/models")
    })
}
