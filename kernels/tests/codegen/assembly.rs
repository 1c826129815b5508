//! The functions of an assembly file and their innermost loops.

use std::collections::{BTreeSet, HashMap, HashSet};

use petgraph::Direction;
use petgraph::algo::dominators;
use petgraph::graphmap::DiGraphMap;

use crate::instruction::{Arch, Flow, Instruction};

#[derive(Debug)]
pub(crate) struct Function<'a> {
    /// Demangled.
    pub(crate) name: String,
    /// Whether a register points to its frame.
    pub(crate) framed: bool,
    blocks: Vec<Block<'a>>,
}

#[derive(Debug, Default)]
struct Block<'a> {
    label: &'a str,
    /// Whether a table leads to it.
    tabled: bool,
    instructions: Vec<Instruction<'a>>,
}

/// A loop without a loop inside.
#[derive(Debug)]
pub(crate) struct Loop<'a> {
    /// Of its first block in the text.
    pub(crate) label: &'a str,
    pub(crate) instructions: Vec<Instruction<'a>>,
}

/// All functions of a file.
pub(crate) fn functions(arch: Arch, text: &str) -> Vec<Function<'_>> {
    let tabled = tabled(text);
    let mut functions = Vec::new();
    let mut symbol = "";
    let mut open: Option<Function<'_>> = None;
    for line in text.lines() {
        let line = without_comment(arch, line);
        if let Some(label) = line.strip_suffix(':') {
            match &mut open {
                Some(function) if is_block(label) => {
                    let tabled = tabled.contains(label);
                    function.blocks.push(Block { label, tabled, ..Block::default() });
                }
                None => symbol = label.trim_matches('"'),
                _ => {}
            }
        } else if line == ".cfi_startproc" {
            let name = format!("{:#}", rustc_demangle::demangle(symbol));
            open = Some(Function { name, framed: false, blocks: vec![Block::default()] });
        } else if line == ".cfi_endproc" {
            functions.extend(open.take());
        } else if let Some(function) = &mut open {
            if [".cfi_def_cfa_register", ".cfi_def_cfa "].iter().any(|cfi| line.starts_with(cfi)) {
                function.framed |= line.contains("rbp") || line.contains("w29");
            } else if !line.is_empty() && !line.starts_with(['.', '/']) {
                let instruction = Instruction::new(arch, line);
                if let Some(block) = function.blocks.last_mut() {
                    block.instructions.push(instruction);
                    // What follows a jump is another block, whether or not it has a label.
                    if instruction.flow() != Flow::Next {
                        function.blocks.push(Block::default());
                    }
                }
            }
        }
    }
    functions
}

fn without_comment(arch: Arch, line: &str) -> &str {
    let comment = match arch {
        Arch::X86_64 => "#",
        Arch::Aarch64 => "//",
    };
    line.split(comment).next().unwrap_or("").trim()
}

/// The blocks that stand in tables.
fn tabled(text: &str) -> HashSet<&str> {
    let data = |line: &&str| {
        [".byte", ".hword", ".word", ".long", ".quad"].iter().any(|data| line.starts_with(data))
    };
    let lines = text.lines().map(str::trim).filter(data);
    lines.flat_map(|line| line.split([' ', '\t', '-', '(', ')'])).filter(|l| is_block(l)).collect()
}

/// Whether it is the label of a block, as LLVM names them.
fn is_block(label: &str) -> bool {
    label.trim_start_matches('.').starts_with("LBB")
}

impl<'a> Function<'a> {
    /// Which block may follow which. A call returns even if it panics, and a table is every table:
    /// a path too many can hide a loop, which is then found missing.
    fn graph(&self) -> DiGraphMap<usize, ()> {
        let labels: HashMap<_, _> =
            self.blocks.iter().enumerate().map(|(index, block)| (block.label, index)).collect();
        let mut graph = DiGraphMap::new();
        graph.add_node(0);
        for (index, block) in self.blocks.iter().enumerate() {
            let flow = block.instructions.last().map_or(Flow::Next, Instruction::flow);
            if let Flow::Branch(label) | Flow::Jump(label) = flow
                && let Some(&target) = labels.get(label)
            {
                graph.add_edge(index, target, ());
            }
            if flow == Flow::Table {
                for (target, _) in self.blocks.iter().enumerate().filter(|(_, b)| b.tabled) {
                    graph.add_edge(index, target, ());
                }
            }
            if matches!(flow, Flow::Next | Flow::Branch(_)) && index + 1 < self.blocks.len() {
                graph.add_edge(index, index + 1, ());
            }
        }
        graph
    }

    /// The natural loops that contain no other: a jump to a block that is on every path to it, and
    /// all that lies between.
    pub(crate) fn innermost_loops(&self) -> Vec<Loop<'a>> {
        let graph = self.graph();
        let dominators = dominators::simple_fast(&graph, 0);
        let mut bodies: BTreeSet<BTreeSet<usize>> = BTreeSet::new();
        for (latch, head, ()) in graph.all_edges() {
            if !dominators.dominators(latch).is_some_and(|mut above| above.any(|b| b == head)) {
                continue;
            }
            let mut body = BTreeSet::from([head]);
            let mut open = vec![latch];
            while let Some(block) = open.pop() {
                // From a block that is never reached nothing comes.
                if dominators.dominators(block).is_some() && body.insert(block) {
                    open.extend(graph.neighbors_directed(block, Direction::Incoming));
                }
            }
            bodies.insert(body);
        }
        let is_innermost = |body: &&BTreeSet<usize>| {
            !bodies.iter().any(|other| other != *body && other.is_subset(body))
        };
        let blocks = |body: &BTreeSet<usize>| body.iter().map(|&b| &self.blocks[b]).collect();
        bodies
            .iter()
            .filter(is_innermost)
            .map(|body| {
                let blocks: Vec<&Block<'a>> = blocks(body);
                Loop {
                    label: blocks.iter().map(|b| b.label).find(|l| !l.is_empty()).unwrap_or(""),
                    instructions: blocks.iter().flat_map(|b| b.instructions.clone()).collect(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loops(text: &str) -> Vec<Vec<String>> {
        let functions = functions(Arch::X86_64, text);
        let text = |found: &Loop<'_>| found.instructions.iter().map(ToString::to_string).collect();
        functions.iter().flat_map(Function::innermost_loops).map(|found| text(&found)).collect()
    }

    #[test]
    fn functions_are_named() {
        let text = "_RNvC3foo3bar:\n.cfi_startproc\n retq\n.cfi_endproc\n\
                    \"baz\":\n.cfi_startproc\n movq %rsp, %rbp\n\
                    .cfi_def_cfa_register %rbp\n.cfi_endproc\n";
        let found = functions(Arch::X86_64, text);
        let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.framed)).collect();
        assert_eq!(found, [("foo::bar", false), ("baz", true)]);
    }

    #[test]
    fn the_inner_of_two_loops() {
        let text = "f:\n.cfi_startproc\n nop\n.LBB0_1:\n nop 1\n.LBB0_2: # inner\n nop 2\n\
                    jne .LBB0_2\n nop 3\n jne .LBB0_1\n retq\n.cfi_endproc\n";
        assert_eq!(loops(text), [["nop 2", "jne .LBB0_2"]]);
    }

    #[test]
    fn two_loops_with_one_head() {
        let text = "f:\n.cfi_startproc\n nop\n.LBB0_1:\n nop 1\n jne .LBB0_1\n nop 2\n\
                    jne .LBB0_1\n retq\n.cfi_endproc\n";
        assert_eq!(loops(text), [["nop 1", "jne .LBB0_1"]]);
    }

    /// Entered in the middle, as LLVM lays loops out; and left for a block at the end.
    #[test]
    fn a_loop_in_pieces() {
        let text = "f:\n.cfi_startproc\n jmp .LBB0_2\n.LBB0_1:\n nop 1\n.LBB0_2:\n nop 2\n\
                    je .LBB0_4\n.LBB0_3:\n jne .LBB0_1\n retq\n.LBB0_4:\n nop 4\n\
                    jmp .LBB0_3\n.cfi_endproc\n";
        let pieces = ["nop 1", "nop 2", "je .LBB0_4", "jne .LBB0_1", "nop 4", "jmp .LBB0_3"];
        assert_eq!(loops(text), [pieces]);
    }

    /// A jump backwards alone makes no loop: here into a panic's block.
    #[test]
    fn no_loop() {
        let text = "f:\n.cfi_startproc\n je .LBB0_2\n.LBB0_1:\n ud2\n.LBB0_2:\n nop\n\
                    jne .LBB0_1\n retq\n.cfi_endproc\n";
        assert!(loops(text).is_empty());
    }

    #[test]
    fn a_loop_behind_a_table() {
        let text = "f:\n.cfi_startproc\n jmpq *%rax\n.LBB0_1:\n nop 1\n jne .LBB0_1\n retq\n\
                    .cfi_endproc\n.LJTI0_0:\n .long .LBB0_1-.LJTI0_0\n";
        assert_eq!(loops(text), [["nop 1", "jne .LBB0_1"]]);
    }
}
