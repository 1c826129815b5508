//! What an instruction does, as far as the check asks.

use std::fmt;

/// An architecture, by the syntax in which LLVM prints its assembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    /// AT&T: the destination comes last.
    X86_64,
    /// The destination comes first.
    Aarch64,
}

/// Where execution goes on behind an instruction.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flow<'a> {
    Next,
    /// To the label or on.
    Branch(&'a str),
    Jump(&'a str),
    /// To a place out of a table.
    Table,
    /// Out of the function.
    Leave,
}

/// One line of assembly, without its comment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instruction<'a> {
    arch: Arch,
    mnemonic: &'a str,
    operands: &'a str,
}

/// `sum = product + addend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MultiplyAdd<'a> {
    /// A register.
    pub(crate) sum: &'a str,
    pub(crate) addend: &'a str,
}

impl fmt::Display for Instruction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.mnemonic, self.operands)
    }
}

impl<'a> Instruction<'a> {
    pub(crate) fn new(arch: Arch, line: &'a str) -> Self {
        // A prefix that says how it is encoded.
        let line = line.strip_prefix("{vex}").unwrap_or(line).trim_start();
        let (mnemonic, operands) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        Self { arch, mnemonic, operands: operands.trim() }
    }

    /// The operands, cut at the commas outside of brackets.
    fn operands(&self) -> Vec<&'a str> {
        let mut depth = 0;
        self.operands
            .split(|c| {
                match c {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth -= 1,
                    _ => {}
                }
                c == ',' && depth == 0
            })
            .map(str::trim)
            .collect()
    }

    /// The operand written to, without its mask, if the instruction writes one; else any.
    pub(crate) fn destination(&self) -> &'a str {
        let operands = self.operands();
        match self.arch {
            Arch::X86_64 => {
                operands.last().map_or("", |last| last.split(" {").next().unwrap_or(""))
            }
            Arch::Aarch64 => operands.first().copied().unwrap_or(""),
        }
    }

    pub(crate) fn flow(&self) -> Flow<'a> {
        let target = self.operands().last().copied().unwrap_or("");
        let is_label = target.trim_start_matches('.').starts_with('L');
        match (self.arch, self.mnemonic) {
            (Arch::X86_64, "jmp" | "jmpq") => match target.strip_prefix('*') {
                // Through a register; through memory go the calls at a function's end.
                Some(pointer) if pointer.starts_with('%') || pointer.contains("LJTI") => {
                    Flow::Table
                }
                None if is_label => Flow::Jump(target),
                _ => Flow::Leave,
            },
            (Arch::X86_64, "ud2") => Flow::Leave,
            (Arch::X86_64, jump) if jump.starts_with('j') => Flow::Branch(target),
            (Arch::Aarch64, "b") if is_label => Flow::Jump(target),
            (Arch::Aarch64, "br") => Flow::Table,
            (Arch::Aarch64, "b" | "brk" | "udf") => Flow::Leave,
            (Arch::Aarch64, "cbz" | "cbnz" | "tbz" | "tbnz") => Flow::Branch(target),
            (Arch::Aarch64, jump) if jump.starts_with("b.") => Flow::Branch(target),
            (_, ret) if ret.starts_with("ret") => Flow::Leave,
            _ => Flow::Next,
        }
    }

    pub(crate) fn is_call(&self) -> bool {
        match self.arch {
            Arch::X86_64 => self.mnemonic.starts_with("call"),
            Arch::Aarch64 => matches!(self.mnemonic, "bl" | "blr"),
        }
    }

    /// Whether it names the stack: a spill, a reload or a push. `framed` says that the function
    /// has a frame pointer; elsewhere that register is one like any other.
    pub(crate) fn names_stack(&self, framed: bool) -> bool {
        let (stack, frame) = match self.arch {
            Arch::X86_64 => ("%rsp", "(%rbp"),
            Arch::Aarch64 => ("[sp", "[x29"),
        };
        self.operands.contains(stack)
            || (framed && self.operands.contains(frame))
            || (self.arch == Arch::X86_64
                && (self.mnemonic.starts_with("push") || self.mnemonic.starts_with("pop")))
    }

    /// Whether it reads or writes memory; a prefetch does neither.
    fn touches_memory(&self) -> bool {
        let (memory, others) = match self.arch {
            Arch::X86_64 => ('(', ["lea", "prefetch", "nop"]),
            Arch::Aarch64 => ('[', ["prfm", "prfum", "dup"]),
        };
        let lane = |operand: &&str| self.arch == Arch::Aarch64 && operand.starts_with('v');
        self.operands().iter().any(|operand| operand.contains(memory) && !lane(operand))
            && !others.iter().any(|other| self.mnemonic.starts_with(other))
    }

    pub(crate) fn is_store(&self) -> bool {
        self.touches_memory()
            && match self.arch {
                Arch::X86_64 => {
                    let compares = ["cmp", "test", "bt", "call", "jmp"];
                    self.destination().ends_with(')')
                        && !compares.iter().any(|compare| self.mnemonic.starts_with(compare))
                }
                Arch::Aarch64 => self.mnemonic.starts_with("st"),
            }
    }

    pub(crate) fn is_load(&self) -> bool {
        self.touches_memory() && !self.is_store()
    }

    /// The multiply-add of whole vectors in registers whose names start with `register`, if it is
    /// one.
    pub(crate) fn multiply_add(&self, register: &str) -> Option<MultiplyAdd<'a>> {
        let sum = self.destination();
        let addend = match self.arch {
            Arch::X86_64 => {
                let form = ["vfmadd", "vfnmadd"].iter().find_map(|m| self.mnemonic.strip_prefix(m));
                match (form, self.operands().as_slice()) {
                    (None, _) if matches!(self.mnemonic, "vdpbf16ps" | "vpdpbusd") => sum,
                    (Some("231ps"), _) => sum,
                    (Some("213ps"), [addend, ..]) | (Some("132ps"), [_, addend, _]) => addend,
                    _ => return None,
                }
            }
            Arch::Aarch64 if matches!(self.mnemonic, "fmla" | "fmls") => sum,
            Arch::Aarch64 => return None,
        };
        sum.starts_with(register).then_some(MultiplyAdd { sum, addend })
    }

    /// Whether it computes with a single float.
    pub(crate) fn is_scalar_float(&self) -> bool {
        match self.arch {
            Arch::X86_64 => {
                let integer = self.mnemonic.trim_start_matches('v').starts_with('p');
                let moves = self.mnemonic.contains("mov") || self.mnemonic.contains("broadcast");
                let single = self.mnemonic.ends_with("ss") || self.mnemonic.ends_with("sd");
                single && !integer && !moves
            }
            Arch::Aarch64 => {
                let float = self.mnemonic.starts_with('f') && self.mnemonic != "fmov";
                float && self.destination().starts_with(['s', 'd', 'h'])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Arch::{Aarch64, X86_64};
    use super::*;

    #[test]
    fn control_flow() {
        let cases = [
            (X86_64, "jne\t.LBB1_2", Flow::Branch(".LBB1_2")),
            (X86_64, "jmp\t.LBB1_2", Flow::Jump(".LBB1_2")),
            (X86_64, "jmpq\t*%rax", Flow::Table),
            (X86_64, "jmpq\t*memcpy@GOTPCREL(%rip)", Flow::Leave),
            (X86_64, "jmp\t_R3foo", Flow::Leave),
            (X86_64, "retq", Flow::Leave),
            (X86_64, "callq\t_R3foo", Flow::Next),
            (Aarch64, "b.ne\t.LBB1_2", Flow::Branch(".LBB1_2")),
            (Aarch64, "tbnz\tw8, #0, .LBB1_2", Flow::Branch(".LBB1_2")),
            (Aarch64, "b\t.LBB1_2", Flow::Jump(".LBB1_2")),
            (Aarch64, "br\tx8", Flow::Table),
            (Aarch64, "ret", Flow::Leave),
            (Aarch64, "bl\t_R3foo", Flow::Next),
        ];
        for (arch, line, flow) in cases {
            assert_eq!(Instruction::new(arch, line).flow(), flow, "{line}");
        }
    }

    #[test]
    fn memory() {
        let cases = [
            (X86_64, "vmovups\t(%rdx,%rax), %zmm1", true, false),
            (X86_64, "vmovups\t%zmm1, 64(%rdx) {%k1}", false, true),
            (X86_64, "vfmadd231ps\t(%rdi){1to16}, %zmm0, %zmm1", true, false),
            (X86_64, "cmpq\t%rax, 8(%rdx)", true, false),
            (X86_64, "leaq\t(%rdi,%rax), %rcx", false, false),
            (X86_64, "prefetcht1\t(%rdi)", false, false),
            (X86_64, "addq\t$4, %rdi", false, false),
            (Aarch64, "ldp\tq0, q1, [x8], #32", true, false),
            (Aarch64, "stp\tq0, q1, [x8]", false, true),
            (Aarch64, "prfm\tpldl2keep, [x8]", false, false),
            (Aarch64, "fmla\tv0.4s, v1.4s, v2.s[0]", false, false),
        ];
        for (arch, line, load, store) in cases {
            let instruction = Instruction::new(arch, line);
            assert_eq!((instruction.is_load(), instruction.is_store()), (load, store), "{line}");
        }
    }

    #[test]
    fn multiply_adds() {
        let add = |sum, addend| Some(MultiplyAdd { sum, addend });
        let cases = [
            (X86_64, "vfmadd231ps\t(%rdi){1to16}, %zmm0, %zmm1", "%zmm", add("%zmm1", "%zmm1")),
            (X86_64, "vfnmadd231ps\t%zmm3, %zmm0, %zmm1 {%k1}", "%zmm", add("%zmm1", "%zmm1")),
            (X86_64, "vfmadd213ps\t%ymm2, %ymm0, %ymm1", "%ymm", add("%ymm1", "%ymm2")),
            (X86_64, "vfmadd213ps\t(%rdi,%rax), %ymm0, %ymm1", "%ymm", add("%ymm1", "(%rdi,%rax)")),
            (X86_64, "vfmadd132ps\t%ymm2, %ymm0, %ymm1", "%ymm", add("%ymm1", "%ymm0")),
            (X86_64, "vfmadd231ps\t%ymm2, %ymm0, %ymm1", "%zmm", None),
            (X86_64, "vfmadd231ss\t%xmm2, %xmm0, %xmm1", "%xmm", None),
            (X86_64, "vdpbf16ps\t(%rdi){1to16}, %zmm0, %zmm1", "%zmm", add("%zmm1", "%zmm1")),
            (X86_64, "vpdpbusd\t%zmm2, %zmm0, %zmm1", "%zmm", add("%zmm1", "%zmm1")),
            (X86_64, "{vex}\tvpdpbusd\t%ymm2, %ymm0, %ymm1", "%ymm", add("%ymm1", "%ymm1")),
            (X86_64, "vmulps\t%zmm2, %zmm0, %zmm1", "%zmm", None),
            (Aarch64, "fmla\tv0.4s, v1.4s, v2.s[0]", "v", add("v0.4s", "v0.4s")),
            (Aarch64, "fmadd\ts0, s1, s2, s3", "v", None),
        ];
        for (arch, line, register, expected) in cases {
            assert_eq!(Instruction::new(arch, line).multiply_add(register), expected, "{line}");
        }
    }

    #[test]
    fn scalar_floats() {
        let cases = [
            (X86_64, "vfmadd231ss\t(%rdi), %xmm0, %xmm1", true),
            (X86_64, "vaddss\t%xmm0, %xmm1, %xmm1", true),
            (X86_64, "mulsd\t%xmm0, %xmm1", true),
            (X86_64, "vbroadcastss\t(%rdi), %zmm1", false),
            (X86_64, "vmovss\t(%rdi), %xmm1", false),
            (X86_64, "vpabsd\t%ymm0, %ymm1", false),
            (Aarch64, "fmadd\ts0, s1, s2, s3", true),
            (Aarch64, "fmla\tv0.4s, v1.4s, v2.s[0]", false),
        ];
        for (arch, line, scalar) in cases {
            assert_eq!(Instruction::new(arch, line).is_scalar_float(), scalar, "{line}");
        }
    }
}
