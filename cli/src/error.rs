//! Why a command stops: one line that names the argument, what came, and what would do.

use std::io;
use std::path::Path;

/// An error of the command. Its exit code is 2; a failed check is no error and exits with 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument, a file's content or a tensor that cannot be used.
    #[error("{argument}: {got}; expected {expected}")]
    Input {
        /// The flag, the file or the tensor at fault.
        argument: String,
        /// What came.
        got: String,
        /// What would do.
        expected: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: cannot {action}: {source}")]
    File {
        /// The file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The library refused a call.
    #[error(transparent)]
    Attention(#[from] headwise::Error),
    /// The library refused what a file holds.
    #[error("{path}: {source}")]
    InFile {
        /// The file.
        path: String,
        /// Why it was refused.
        source: headwise::Error,
    },
    /// The thread pool could not be built.
    #[error("--threads: {0}; try fewer")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// Standard output failed.
    #[error("standard output: {0}")]
    Stdout(#[source] io::Error),
    /// A result could not be written as JSON.
    #[error("standard output: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// An [`Error::Input`].
    pub(crate) fn input(
        argument: impl Into<String>,
        got: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Input { argument: argument.into(), got: got.into(), expected: expected.into() }
    }

    /// What turns an I/O error on `path` into an [`Error::File`].
    pub(crate) fn file(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { path, action, source }
    }

    /// What turns a refusal of the library into an [`Error::InFile`].
    pub(crate) fn in_file(path: &str) -> impl FnOnce(headwise::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::InFile { path, source }
    }

    /// Whether the reader of standard output went away, which is nobody's fault.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        let kind = match self {
            Self::Stdout(error) => Some(error.kind()),
            Self::Json(error) => error.io_error_kind(),
            _ => None,
        };
        kind == Some(io::ErrorKind::BrokenPipe)
    }
}

/// The command's result type.
pub type Result<T> = std::result::Result<T, Error>;
