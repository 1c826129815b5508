//! The built command, and files to run it on.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

/// What a run of the command left.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_headwise"))
}

pub(crate) fn headwise<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    command().args(args).output().unwrap().into()
}

/// Runs the words of a line; `{}` stands for `path`.
pub(crate) fn headwise_on(line: &str, path: &Path) -> Ran {
    headwise(line.split(' ').map(|word| word.replace("{}", path.to_str().unwrap())))
}

impl Ran {
    /// Standard output as one JSON object a line and nothing else, of a run without complaints.
    #[track_caller]
    pub(crate) fn objects(&self, code: i32) -> Vec<Value> {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stderr, "");
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let objects: Vec<Value> = self.stdout.lines().map(parse).collect();
        assert!(objects.iter().all(Value::is_object));
        objects
    }

    /// A refusal: exit code 2, nothing on standard output, an error of one line that has all
    /// of `parts`.
    #[track_caller]
    pub(crate) fn refuses(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(2), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} in {:?}", self.stderr);
        }
    }
}

/// A file of the fixtures, embedded or of the library's tests.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let paths = ["fixtures", "../tests/fixtures"].map(|dir| root.join(dir).join(name));
    paths.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{name}"))
}

/// A tensor to put into a file.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Part {
    pub(crate) fn f32(name: &'static str, shape: &[usize], data: &[f32]) -> Self {
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    /// Numbers that differ from tensor to tensor.
    pub(crate) fn waves(name: &'static str, shape: &[usize]) -> Self {
        let phase = name.bytes().map(f32::from).sum::<f32>();
        let count: usize = shape.iter().product();
        let data: Vec<f32> = (0..count).map(|i| (phase + 0.7 * i as f32).sin()).collect();
        Self::f32(name, shape, &data)
    }

    pub(crate) fn bytes(name: &'static str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Self {
        Self { name, dtype, shape: shape.to_vec(), bytes: bytes.to_vec() }
    }

    pub(crate) fn floats(&self) -> Vec<f32> {
        self.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// Writes a safetensors file.
pub(crate) fn write(path: &Path, parts: &[Part], metadata: &[(&str, &str)]) {
    let views = parts.iter().map(|part| {
        (part.name, TensorView::new(part.dtype, part.shape.clone(), &part.bytes).unwrap())
    });
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// q, k and v of 2 batch entries, 4 heads in 2 groups, 5 queries over 7 keys.
pub(crate) fn qkv() -> Vec<Part> {
    vec![
        Part::waves("q", &[2, 4, 5, 8]),
        Part::waves("k", &[2, 2, 7, 8]),
        Part::waves("v", &[2, 2, 7, 6]),
    ]
}

/// The names in a directory.
pub(crate) fn listing(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
