//! What the examples share.

mod arguments;
mod clock;
mod compare;
mod way;
mod weights;

pub(crate) use arguments::Arguments;
pub(crate) use clock::{Sample, attention, sample};
pub(crate) use compare::Comparison;
pub(crate) use way::Way;
pub(crate) use weights::find;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The status of a program that did or did not do what it should.
pub(crate) fn finish(result: Result<()>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// The answers of other people's implementation, made by `make_goldens.py`.
#[cfg(test)]
pub(crate) fn golden(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("checked in as JSON")
}
