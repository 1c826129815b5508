//! Whether the hot loops came out of the compiler as they were meant: the multiply-adds of a whole
//! tile, their sums in registers, and no spill, no call.
//!
//! ```console
//! cargo test -p headwise-kernels --test codegen -- --ignored --nocapture
//! ```
//!
//! prints every innermost loop with a multiply-add in it, and fails with the text of hot ones that
//! fall short. What is read is the assembly of this crate in the release profile, for the machine's
//! architecture or for the target in `CODEGEN_TARGET`.
//!
//! A loop is hot if at least as many of its multiply-adds as the tile has add to sums, however
//! often it is unrolled. Of each kernel one must hold its sums in as many registers.

mod assembly;
mod instruction;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use assembly::{Function, Loop};
use instruction::{Arch, Instruction};

/// An instruction set that has tiles.
#[derive(Debug, Clone, Copy)]
struct Isa {
    arch: Arch,
    /// The token's type.
    token: &'static str,
    /// Its method that switches the instruction set on.
    entry: &'static str,
    /// What its vector registers' names start with.
    register: &'static str,
    /// Multiply-adds in a step of every kernel's largest tile.
    tile: usize,
}

const ISAS: &[Isa] = &[
    Isa {
        arch: Arch::X86_64,
        token: "avx512::Avx512",
        entry: "vectorize",
        register: "%zmm",
        tile: 24,
    },
    Isa { arch: Arch::X86_64, token: "avx2::Avx2", entry: "vectorize", register: "%ymm", tile: 12 },
];

/// What the names of the kernels start with, and the tile of those that have a smaller one. The careful
/// values, which select, have none, and those of halves keep an address on the stack with AVX2.
const KERNELS: &[(&str, Option<usize>)] = &[
    ("microkernel::scores::Scores<headwise_kernels::microkernel::terms::Plain, f32, false", None),
    ("microkernel::scores::Scores<headwise_kernels::microkernel::terms::Plain, f32, true", None),
    (
        "microkernel::scores::Scores<headwise_kernels::microkernel::terms::Chosen<headwise_kernels::term::NoTerm>, f32, false",
        None,
    ),
    ("microkernel::values::Values<f32, f32, false", None),
    ("microkernel::values::Values<f32, half::bfloat::bf16, false", None),
    ("microkernel::values::Values<f32, half::binary16::f16, false", None),
    ("gemm::Stripe", None),
    (
        "microkernel::scores::Scores<headwise_kernels::microkernel::terms::Plain, half::bfloat::bf16, false",
        Some(8),
    ),
];

/// The same of what is multiplied in pairs.
const PAIRS: (&[Isa], &[(&str, Option<usize>)]) = (
    &[Isa {
        arch: Arch::X86_64,
        token: "avx512::Avx512",
        entry: "vectorize_bf16",
        register: "%zmm",
        tile: 24,
    }],
    &[
        (
            "microkernel::scores::Scores<headwise_kernels::microkernel::terms::Plain, headwise_kernels::simd::stored::Bf16Pair, false",
            None,
        ),
        (
            "microkernel::values::Values<headwise_kernels::simd::stored::Bf16Pair, f32, false, false",
            None,
        ),
        (
            "microkernel::values::Values<headwise_kernels::simd::stored::Bf16Pair, half::bfloat::bf16, false, false",
            None,
        ),
    ],
);

/// The same of what is multiplied in quads.
const QUADS: (&[Isa], &[(&str, Option<usize>)]) = (
    &[Isa { entry: "vectorize_int8", ..PAIRS.0[0] }, Isa { entry: "vectorize_int8", ..ISAS[1] }],
    &[
        (
            "microkernel::scores::Scores<headwise_kernels::microkernel::terms::Plain, headwise_kernels::simd::stored::Int8Quad, false",
            None,
        ),
        (
            "microkernel::scores::Scores<headwise_kernels::microkernel::terms::Chosen<headwise_kernels::term::NoTerm>, headwise_kernels::simd::stored::Int8Quad, false",
            None,
        ),
        ("microkernel::int8_values::Int8Values", Some(8)),
    ],
);

/// The same of keys that are multiplied as integers where they lie: with AVX2 they keep an address on the stack.
const INTEGERS: (&[Isa], &[(&str, Option<usize>)]) = (
    &[Isa { entry: "vectorize_int8", ..PAIRS.0[0] }],
    &[(
        "microkernel::scores::Scores<headwise_kernels::microkernel::terms::Plain, headwise_kernels::simd::stored::Int8Dot, false",
        Some(8),
    )],
);

/// The kernel that a function is, if it is one compiled for the instruction set: as `vectorize`, or
/// as the function inside that switches the instruction set on.
fn kernel_of<'n>(function: &'n str, isa: &Isa) -> Option<&'n str> {
    let (token, kernel) = function.split_once(&format!(">::{}::", isa.entry))?;
    let kernel = kernel.strip_prefix("enter::").unwrap_or(kernel);
    let kernel = kernel.strip_prefix("<headwise_kernels::")?.strip_suffix('>')?;
    token.contains(&format!("::{} as ", isa.token)).then_some(kernel)
}

/// What is known of a loop.
struct Verdict {
    multiply_adds: usize,
    /// Those that add to what the loop's multiply-adds leave, as those of a polynomial do not.
    summing: usize,
    /// Different registers that these leave their sums in.
    sums: usize,
    loads: usize,
    /// Instructions that name the stack.
    stack: Vec<String>,
    hot: bool,
    /// Where it falls short, if it is hot.
    faults: Vec<String>,
}

impl Verdict {
    fn new(found: &Loop<'_>, framed: bool, isa: &Isa) -> Self {
        let instructions = || found.instructions.iter();
        let multiply_adds: Vec<_> =
            instructions().filter_map(|i| i.multiply_add(isa.register)).collect();
        // A register that anything else writes begins anew in each turn, as a polynomial does, unless
        // it comes back from where it was spilt.
        let others = instructions()
            .filter(|i| i.multiply_add(isa.register).is_none() && !i.names_stack(framed));
        let begun: BTreeSet<_> = others.map(Instruction::destination).collect();
        let results = multiply_adds.iter().map(|m| m.sum).filter(|sum| !begun.contains(sum));
        let results: BTreeSet<_> = results.collect();
        let summing = || multiply_adds.iter().filter(|m| results.contains(m.addend));
        let hot = summing().count() >= isa.tile;
        let faults = instructions().filter(|_| hot);
        Self {
            multiply_adds: multiply_adds.len(),
            summing: summing().count(),
            sums: summing().map(|m| m.sum).collect::<BTreeSet<_>>().len(),
            loads: instructions().filter(|i| i.is_load()).count(),
            stack: instructions().filter(|i| i.names_stack(framed)).map(<_>::to_string).collect(),
            hot,
            faults: faults.filter_map(|i| Some(format!("{}: {i}", fault(i, framed)?))).collect(),
        }
    }
}

/// What an instruction must not be in a hot loop, if it is that.
fn fault(instruction: &Instruction<'_>, framed: bool) -> Option<&'static str> {
    if instruction.is_call() {
        Some("call")
    } else if instruction.names_stack(framed) {
        Some("stack")
    } else if instruction.is_store() {
        Some("store")
    } else if instruction.is_scalar_float() {
        Some("scalar float")
    } else {
        None
    }
}

/// What was found.
struct Report {
    /// A line for each loop with a multiply-add in it, and what it has on the stack.
    table: String,
    /// What must not be, with the text of the loops concerned.
    faults: String,
}

impl Report {
    /// Looks at every kernel on every instruction set.
    fn new(functions: &[Function<'_>], isas: &[Isa], kernels: &[(&str, Option<usize>)]) -> Self {
        let numbers = ["size", "FMAs", "summing", "sums", "loads", "stack"];
        let table = row(["instruction set", "kernel", "loop"], numbers.map(String::from), "");
        let mut report = Self { table, faults: String::new() };
        for isa in isas {
            for (kernel, tile) in kernels {
                let isa = Isa { tile: tile.unwrap_or(isa.tile), ..*isa };
                report.look_at(functions, &isa, kernel);
            }
        }
        report
    }

    fn look_at(&mut self, functions: &[Function<'_>], isa: &Isa, expected: &str) {
        let Isa { token, tile, .. } = *isa;
        let mut whole = false;
        for function in functions {
            let Some(kernel) = kernel_of(&function.name, isa) else { continue };
            if !kernel.starts_with(expected) {
                continue;
            }
            for found in function.innermost_loops() {
                let verdict = Verdict::new(&found, function.framed, isa);
                whole |= verdict.sums >= tile;
                if verdict.multiply_adds > 0 {
                    self.add([token, kernel, found.label], &found, &verdict);
                }
            }
        }
        if !whole {
            let fault = format!("no innermost loop has its sums in {tile} registers");
            self.faults += &format!("\n{expected} on {token}: {fault}\n");
        }
    }

    fn add(&mut self, names: [&str; 3], found: &Loop<'_>, verdict: &Verdict) {
        let Verdict { multiply_adds, summing, sums, loads, stack, hot, faults } = verdict;
        let size = found.instructions.len();
        let numbers = [size, *multiply_adds, *summing, *sums, *loads, stack.len()];
        let mark = match (hot, faults.is_empty()) {
            (false, _) => "",
            (true, true) => "hot",
            (true, false) => "hot, FAILS",
        };
        self.table += &row(names, numbers.map(|number| number.to_string()), mark);
        for instruction in stack {
            self.table += &format!("    {instruction}\n");
        }
        if !faults.is_empty() {
            let [isa, kernel, label] = names;
            let text: Vec<_> = found.instructions.iter().map(<_>::to_string).collect();
            let (faults, text) = (faults.join("\n  "), text.join("\n    "));
            self.faults += &format!("\n{kernel} on {isa}, {label}:\n  {faults}\nin\n    {text}\n");
        }
    }
}

fn row([isa, kernel, label]: [&str; 3], numbers: [String; 6], mark: &str) -> String {
    let numbers = numbers.map(|number| format!("{number:>8}")).concat();
    format!("{isa:<15} {kernel:<36} {label:<11}{numbers}  {mark}\n")
}

/// Compiles the crate and gives the assembly files of its codegen units.
fn compile(target: Option<&str>) -> Vec<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["rustc", "--package", "headwise-kernels", "--lib", "--release", "--locked"])
        .args(["--message-format", "json-render-diagnostics"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .args(["--target-dir", concat!(env!("CARGO_TARGET_TMPDIR"), "/codegen")]);
    if let Some(target) = target {
        cargo.args(["--target", target]);
    }
    // Names with their generic arguments, which tell the kernels apart.
    cargo.args(["--", "--emit", "asm", "-C", "symbol-mangling-version=v0"]);
    // As users compile it: with flags for one processor there would be nothing to switch on.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo failed");

    let messages = String::from_utf8(output.stdout).expect("cargo speaks UTF-8");
    let metadata = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "headwise_kernels")
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .find(|file| file.extension().is_some_and(|extension| extension == "rmeta"))
        .expect("cargo names the crate's metadata");
    // Beside files of other compilers and flags, which differ in the hash behind the name.
    let stem = metadata.file_stem().and_then(|stem| stem.to_str()).expect("a file name");
    let stem = stem.strip_prefix("lib").unwrap_or(stem);
    let directory = metadata.parent().unwrap_or(Path::new("."));
    let files: Vec<_> = std::fs::read_dir(directory)
        .expect("a directory")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "s"))
        .filter(|file| file.file_name().is_some_and(|n| n.to_string_lossy().starts_with(stem)))
        .collect();
    assert!(!files.is_empty(), "no assembly of {stem} in {}", directory.display());
    files
}

#[test]
#[ignore = "compiles the crate once more; what it reads depends on the compiler's version"]
fn hot_loops() {
    let target = std::env::var("CODEGEN_TARGET").ok();
    let arch = match target.as_deref().unwrap_or(std::env::consts::ARCH) {
        arch if arch.starts_with("x86_64") => Arch::X86_64,
        arch if arch.starts_with("aarch64") => Arch::Aarch64,
        other => panic!("no instruction set with tiles on {other}"),
    };
    let texts: Vec<_> = compile(target.as_deref())
        .iter()
        .map(|file| std::fs::read_to_string(file).expect("assembly is text"))
        .collect();
    let functions: Vec<_> = texts.iter().flat_map(|text| assembly::functions(arch, text)).collect();
    let isas: Vec<_> = ISAS.iter().copied().filter(|isa| isa.arch == arch).collect();
    assert!(!isas.is_empty(), "no instruction set with tiles on this architecture");
    let of_floats = Report::new(&functions, &isas, KERNELS);
    let of_dots = [PAIRS, QUADS, INTEGERS].map(|(isas, kernels)| {
        let isas: Vec<_> = isas.iter().copied().filter(|isa| isa.arch == arch).collect();
        Report::new(&functions, &isas, kernels)
    });
    println!("{}", of_floats.table);
    let mut faults = of_floats.faults;
    for report in of_dots {
        println!("{}", report.table);
        faults += &report.faults;
    }
    assert!(faults.is_empty(), "{faults}");
}

/// The check can fail.
#[cfg(test)]
mod tests {
    use super::*;

    const ISA: Isa =
        Isa { arch: Arch::X86_64, token: "x::X", entry: "vectorize", register: "%ymm", tile: 2 };
    const CLEAN: &str = "vmovups (%rsi), %ymm0\n vfmadd231ps (%rdi), %ymm0, %ymm1\n \
                         vfmadd231ps 32(%rdi), %ymm0, %ymm2\n ";

    /// The kernel `gemm::Stripe` as one loop around `body`.
    fn kernel(body: &str) -> String {
        format!("kernel:\n.cfi_startproc\n.LBB0_1:\n {body} jne .LBB0_1\n retq\n.cfi_endproc\n")
    }

    fn report(arch: Arch, isa: &Isa, text: &str) -> Report {
        let mut functions = assembly::functions(arch, text);
        for function in &mut functions {
            let token = isa.token;
            function.name = format!(
                "<headwise_kernels::simd::{token} as headwise_kernels::simd::Simd>\
                 ::vectorize::enter::<headwise_kernels::gemm::Stripe>"
            );
        }
        Report::new(&functions, &[*isa], &[("gemm::Stripe", None)])
    }

    fn faults(body: &str) -> String {
        report(Arch::X86_64, &ISA, &kernel(body)).faults
    }

    #[test]
    fn clean_loops_pass() {
        assert_eq!(faults(CLEAN), "");
        // Unrolled.
        assert_eq!(faults(&CLEAN.repeat(4)), "");
        let table = report(Arch::X86_64, &ISA, &kernel(&CLEAN.repeat(4))).table;
        let row: Vec<_> = table.lines().nth(1).unwrap_or("").split_whitespace().collect();
        assert_eq!(row, ["x::X", "gemm::Stripe", ".LBB0_1", "13", "8", "8", "2", "12", "0", "hot"]);
    }

    #[test]
    fn faults_are_found() {
        for (fault, expected) in [
            ("vmovups 32(%rsp), %ymm3", "stack: vmovups 32(%rsp), %ymm3"),
            ("vmovups %ymm3, 32(%rsp)", "stack: vmovups %ymm3, 32(%rsp)"),
            ("movq 8(%rsp), %rax", "stack: movq 8(%rsp), %rax"),
            ("vfmadd231ps (%rsp), %ymm0, %ymm1", "stack: vfmadd231ps (%rsp), %ymm0, %ymm1"),
            ("pushq %rax", "stack: pushq %rax"),
            ("callq memcpy@PLT", "call: callq memcpy@PLT"),
            ("callq *%rax", "call: callq *%rax"),
            ("vmovups %ymm1, (%rdi)", "store: vmovups %ymm1, (%rdi)"),
            ("vfmadd231ss %xmm3, %xmm4, %xmm5", "scalar float: vfmadd231ss"),
        ] {
            let found = faults(&format!("{CLEAN}{fault}\n "));
            assert!(found.contains(expected), "{fault} gives {found:?}");
        }
    }

    #[test]
    fn too_few_sums_are_found() {
        let missing = "no innermost loop has its sums in 2 registers";
        // One multiply-add; two of them, one after the other in the same register; none.
        for body in [
            "vfmadd231ps (%rdi), %ymm0, %ymm1\n ",
            "vfmadd231ps (%rdi), %ymm0, %ymm1\n vfmadd231ps 32(%rdi), %ymm0, %ymm1\n ",
            "vmulps (%rdi), %ymm0, %ymm1\n vaddps %ymm1, %ymm2, %ymm2\n ",
        ] {
            assert!(faults(body).contains(missing), "{body}");
        }
        // Two sums that are never in registers together are a spill and one sum too few.
        let spilt = "vmovups (%rsp), %ymm1\n vfmadd231ps (%rdi), %ymm0, %ymm1\n \
                     vmovups %ymm1, (%rsp)\n ";
        let found = faults(&spilt.repeat(2));
        assert!(found.contains(missing) && found.contains("stack: vmovups %ymm1, (%rsp)"));
        // In no loop, and in another function.
        let text = kernel(CLEAN).replace("jne .LBB0_1", "nop");
        assert!(report(Arch::X86_64, &ISA, &text).faults.contains(missing));
        let functions = assembly::functions(Arch::X86_64, "");
        assert!(Report::new(&functions, &[ISA], KERNELS).faults.contains(missing));
    }

    /// The frame pointer is one where there is a frame; a loop that is not hot may spill.
    #[test]
    fn what_is_no_fault() {
        let body = format!("{CLEAN}movq 8(%rbp), %rax\n ");
        assert_eq!(faults(&body), "");
        let framed = kernel(&body).replace("startproc", "startproc\n.cfi_def_cfa_register %rbp");
        assert!(report(Arch::X86_64, &ISA, &framed).faults.contains("stack: movq 8(%rbp), %rax"));
        // A polynomial's multiply-adds add to constants.
        let horner = "vfmadd213ps %ymm5, %ymm0, %ymm1\n vfmadd213ps %ymm6, %ymm0, %ymm1\n ";
        let polynomial = kernel(&format!("{horner}movq 8(%rsp), %rax\n "));
        assert_eq!(report(Arch::X86_64, &ISA, &(kernel(CLEAN) + &polynomial)).faults, "");
        let cold = "kernel2:\n.cfi_startproc\n.LBB1_1:\n vfmadd231ps (%rsp), %ymm0, %ymm1\n \
                    jne .LBB1_1\n.cfi_endproc\n";
        assert_eq!(report(Arch::X86_64, &ISA, &(kernel(CLEAN) + cold)).faults, "");
    }

    #[test]
    fn aarch64() {
        let isa =
            Isa { arch: Arch::Aarch64, token: "x::X", entry: "vectorize", register: "v", tile: 2 };
        let report = |extra: &str| {
            let text = format!(
                "kernel:\n.cfi_startproc\n.LBB0_1: // a loop\n ldp q0, q1, [x8], #32\n \
                 fmla v2.4s, v0.4s, v1.s[0]\n fmla v3.4s, v0.4s, v1.s[1]\n {extra}\n \
                 subs x9, x9, #1\n b.ne .LBB0_1\n ret\n.cfi_endproc\n"
            );
            report(Arch::Aarch64, &isa, &text).faults
        };
        assert_eq!(report(""), "");
        for (fault, kind) in [
            ("ldr q4, [sp, #16]", "stack"),
            ("bl memcpy", "call"),
            ("str q2, [x8]", "store"),
            ("fmadd s0, s1, s2, s3", "scalar float"),
        ] {
            assert!(report(fault).contains(&format!("{kind}: {fault}")), "{fault}");
        }
    }
}
