//! Whether this process was forked from the one whose threads it would use.

/// Whether this process is a child, without an `exec`, of the one that first asked. Of its parent's
/// threads it has the one that forked alone. (What the parent did before it first asked, nobody
/// knows here: a pool that others started and used goes unnoticed.)
#[cfg(unix)]
pub(crate) fn is_child() -> bool {
    use std::sync::atomic::{AtomicU32, Ordering};

    static FIRST: AtomicU32 = AtomicU32::new(0);
    let own = std::process::id();
    let first = match FIRST.load(Ordering::Relaxed) {
        0 => FIRST
            .compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed)
            .unwrap_or_else(|id| id),
        id => id,
    };
    first != 0 && first != own
}

/// Elsewhere processes are not forked.
#[cfg(not(unix))]
pub(crate) fn is_child() -> bool {
    false
}
