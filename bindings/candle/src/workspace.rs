//! Scratch memory that outlives a call.

use std::cell::Cell;

use headwise::Workspace;

thread_local! {
    static WORKSPACE: Cell<Workspace> = Cell::default();
}

/// Runs with this thread's workspace. While a call waits for others' work its thread may begin another
/// call; that one finds an empty workspace.
pub(crate) fn with<R>(run: impl FnOnce(&mut Workspace) -> R) -> R {
    let mut workspace = WORKSPACE.take();
    let result = run(&mut workspace);
    WORKSPACE.set(workspace);
    result
}
