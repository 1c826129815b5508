//! Scratch memory that outlives a call: the library's, a block, or by the caller's allocator.

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, TryLockError};

use headwise::kv_cache::{PagedCapacity, SequenceId, TableBuffer};
use headwise::{Error, Workspace};

use crate::boundary::guard;
use crate::list::room;
use crate::pointer;
use crate::sized::{self, growing};
use crate::status::{Failure, Result, headwise_error, headwise_status};

/// Gives `size` bytes on a boundary of `align`, or NULL. Must return.
pub type headwise_allocate =
    Option<unsafe extern "C" fn(context: *mut c_void, size: usize, align: usize) -> *mut c_void>;

/// Takes back what `headwise_allocate` gave for this size and boundary. Must return.
pub type headwise_release = Option<
    unsafe extern "C" fn(context: *mut c_void, data: *mut c_void, size: usize, align: usize),
>;

/// Where a workspace's memory comes from. With all of it zero from the library's own allocator, as
/// calls need it. Either a block or an allocator.
///
/// Whatever is given here, these come from the library's own allocator: a workspace's page tables, at
/// its first call to a paged cache, and again if the sequences of a call, pages that they share counted
/// for each, have more pages than the cache; the packed operands of `HEADWISE_DTYPE_F64` and
/// `HEADWISE_ALGORITHM_UNFUSED`; the list of states of `headwise_merge_states`; messages of refusals;
/// and the threads of the library's pool.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct headwise_workspace_options {
    /// `sizeof(headwise_workspace_options)`.
    pub size: usize,
    /// Bytes to have from the beginning: see `headwise_workspace_bytes`. Of no account with a block.
    pub bytes: usize,
    /// A block of the caller's, to outlive the workspace, which no tensor of a call may share. It never
    /// grows: a call that needs more is refused. On a boundary of 64 bytes nothing of it is lost.
    pub block: *mut c_void,
    /// Its bytes.
    pub block_bytes: usize,
    /// An allocator of the caller's; both functions or none. Called by the thread that calls the
    /// library.
    pub allocate: headwise_allocate,
    /// Its other half.
    pub release: headwise_release,
    /// Handed to both.
    pub context: *mut c_void,
}
growing!(headwise_workspace_options, ..=context: *mut c_void);

/// Scratch memory for one call at a time, kept from call to call.
pub struct headwise_workspace {
    scratch: Mutex<Scratch>,
}

/// What a call needs beside its arguments.
#[derive(Default)]
pub(crate) struct Scratch {
    workspace: Workspace,
    /// What the workspace lies in, if the caller's allocator gave it.
    block: Option<Block>,
    allocator: Option<Allocator>,
    lists: Lists,
}

/// Lists that are filled anew by every call.
#[derive(Default)]
pub(crate) struct Lists {
    pub(crate) tables: TableBuffer,
    pub(crate) names: Vec<SequenceId>,
    /// The sequences and pages that there is room for.
    room: (usize, usize),
}

impl Lists {
    /// Makes room for all sequences of a cache, and for tables of all its pages, so that calls allocate
    /// nothing as sequences grow.
    pub(crate) fn reserve(&mut self, capacity: PagedCapacity) -> Result<()> {
        let PagedCapacity { sequences, pages, .. } = capacity;
        if sequences > self.room.0 || pages > self.room.1 {
            room("sequences", &mut self.names, sequences)?;
            self.tables.reserve(sequences, pages)?;
            self.room = (sequences.max(self.room.0), pages.max(self.room.1));
        }
        Ok(())
    }
}

// Handles go from thread to thread.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<headwise_workspace>();
};

/// The boundary of blocks.
const ALIGN: usize = 64;

#[derive(Clone, Copy)]
struct Allocator {
    allocate: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    release: unsafe extern "C" fn(*mut c_void, *mut c_void, usize, usize),
    context: *mut c_void,
}

/// Memory from the caller's allocator.
struct Block {
    data: *mut c_void,
    size: usize,
    allocator: Allocator,
}

// SAFETY: the allocator is called by who calls the library, with the workspace locked; its caller
// promised that any of their threads may.
unsafe impl Send for Scratch {}

impl Allocator {
    fn allocate(self, size: usize) -> Result<Block> {
        // SAFETY: the promise of the function's type, made with the workspace.
        let data = unsafe { (self.allocate)(self.context, size, ALIGN) };
        if data.is_null() {
            let (got, expected) = (format!("{size} bytes"), "memory from the allocator".into());
            return Err(Error::Overflow { argument: "workspace", got, expected }.into());
        }
        Ok(Block { data, size, allocator: self })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Allocator { release, context, .. } = self.allocator;
        // SAFETY: what the allocator gave, once.
        unsafe { release(context, self.data, self.size, ALIGN) };
    }
}

impl Scratch {
    /// # Safety
    /// Block and allocator must be what the header says, as long as this lives.
    unsafe fn new(options: &headwise_workspace_options) -> Result<Self> {
        let allocator = match (options.allocate, options.release) {
            (None, None) => None,
            (Some(allocate), Some(release)) => {
                Some(Allocator { allocate, release, context: options.context })
            }
            _ => {
                let expected = "`allocate` and `release`, or neither";
                return Err(Failure::argument("options.allocate", "half an allocator", expected));
            }
        };
        let mut scratch = Self { allocator, ..Self::default() };
        if options.block.is_null() {
            if options.block_bytes > 0 {
                let expected = format!("a block of {} bytes", options.block_bytes);
                return Err(Failure::argument("options.block", "a null pointer", expected));
            }
            let named = |failure: Failure| failure.renamed("options.bytes");
            scratch.reserve(options.bytes).map_err(named)?;
            return Ok(scratch);
        }
        if allocator.is_some() {
            let expected = "one of the two";
            return Err(Failure::argument("options.block", "a block and an allocator", expected));
        }
        // SAFETY: the caller's promise.
        scratch.workspace =
            unsafe { Workspace::from_raw_parts(options.block.cast(), options.block_bytes) };
        Ok(scratch)
    }

    /// Makes room for so many bytes in new memory; what was there is of no account.
    fn reserve(&mut self, bytes: usize) -> Result<()> {
        self.workspace = Workspace::new();
        self.block = None;
        let Some(allocator) = self.allocator else {
            self.workspace = Workspace::with_bytes(bytes)?;
            return Ok(());
        };
        let size = bytes.max(1).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        let block = self.block.insert(allocator.allocate(size)?);
        // SAFETY: the allocator's block, which `block` keeps until the workspace is another.
        self.workspace = unsafe { Workspace::from_raw_parts(block.data.cast(), size) };
        Ok(())
    }

    /// Calls `run` with the workspace, and again in a larger block of the caller's allocator if that
    /// was all it lacked. The library refuses such a call before it writes anything.
    pub(crate) fn run<T>(
        &mut self,
        mut run: impl FnMut(&mut Workspace, &mut Lists) -> Result<T>,
    ) -> Result<T> {
        match run(&mut self.workspace, &mut self.lists) {
            Err(Failure { workspace_bytes: Some(bytes), .. }) if self.allocator.is_some() => {
                self.reserve(bytes)?;
                run(&mut self.workspace, &mut self.lists)
            }
            result => result,
        }
    }
}

impl headwise_workspace {
    /// The scratch memory, if nobody is using it.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, Scratch>> {
        match self.scratch.try_lock() {
            Ok(scratch) => Ok(scratch),
            // Nothing in it is of any account between calls.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Failure {
                status: headwise_status::Busy,
                ..Failure::argument("workspace", "in use by another thread", "one for each thread")
            }),
        }
    }
}

/// Makes a workspace; NULL options are all zero.
///
/// # Safety
/// Pointers must be null or as the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_workspace_create(
    options: *const headwise_workspace_options,
    workspace: *mut *mut headwise_workspace,
    error: *mut headwise_error,
) -> headwise_status {
    let make = || {
        // SAFETY: the caller's promises.
        let scratch = unsafe { Scratch::new(&sized::read_or_zero("options", options)?)? };
        Ok(headwise_workspace { scratch: Mutex::new(scratch) })
    };
    // SAFETY: the caller's promises, handed on.
    unsafe { guard(error, || pointer::give_handle("workspace", workspace, make)) }
}

/// Frees a workspace that no call uses, and makes the handle NULL.
///
/// # Safety
/// `workspace` must be null, or point at null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headwise_workspace_free(workspace: *mut *mut headwise_workspace) {
    // SAFETY: the caller's promise.
    unsafe { pointer::free_handle(workspace) }
}
