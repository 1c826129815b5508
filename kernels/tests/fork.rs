//! A process that was forked after its parent used rayon's global pool computes the same, alone. Its
//! own test binary: the child must not inherit a lock that another test's thread held.
#![cfg(target_os = "linux")]

use headwise_kernels::{
    Executor, Masking, Outputs, Problem, Rayon, Scale, Settings, View, ViewMut, Workspace,
    attention,
};

const SHAPE: [usize; 4] = [1, 4, 192, 64];

/// Work enough for several threads.
fn compute(workspace: &mut Workspace, out: &mut [f32]) {
    let x: Vec<f32> = (0..SHAPE.iter().product()).map(|i| (i as f32).sin()).collect();
    let mut run = || {
        let x = View::bhsd(&x, SHAPE)?;
        let problem = Problem::new(x, x, x, Scale::InvSqrtHeadDim, &Masking::default())?;
        let outputs = Outputs::new(ViewMut::bhsd(out, SHAPE)?);
        attention(&problem, outputs, &Settings::default(), workspace)
    };
    run().unwrap_or_else(|error| panic!("{error}"));
}

/// The status with which a child of `work` ends; it has half a minute.
fn in_child(work: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child has this thread alone; it computes, and leaves without running what other
    // threads would have to be there for.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::alarm(30);
            libc::_exit(if work() { 0 } else { 1 });
        }
        let mut status = -1;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status
    }
}

#[test]
fn a_child_runs_alone_and_to_the_same_bits() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build_global();
    pool.unwrap_or_else(|error| panic!("{error}"));
    let mut workspace = Workspace::new();
    let mut expected = vec![0.0; SHAPE.iter().product()];
    compute(&mut workspace, &mut expected);
    assert_eq!(Rayon.threads(), 3);
    let mut out = vec![0.0; expected.len()];
    let status = in_child(|| {
        // As a plan that the parent made would.
        Rayon.run(3, &|| ());
        compute(&mut workspace, &mut out);
        Rayon.threads() == 1 && out == expected
    });
    assert_eq!(status, 0, "as waitpid has it: 14 is the alarm, a child that hung");
    assert_eq!(Rayon.threads(), 3);
}
