//! How the system's scheduler treats the program's threads.

/// Has what this thread does, and the threads that it starts, scheduled as a batch job: it gets its share of the cores, but
/// what wakes up for it does not take a core from what is running there. That may be the database that is being filled:
/// where a server shares the cores with a migration, that has fewer context switches, and is done sooner.
///
/// Whoever started the program under another policy than the usual one keeps it. Only Linux has such a policy.
pub(crate) fn as_batch() {
    #[cfg(target_os = "linux")]
    #[allow(unsafe_code)]
    // SAFETY: both take the number of a process, 0 for this thread, and the second a pointer that is good for the call, to
    // integers alone. Where it cannot be set, all is as it was.
    unsafe {
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            // A priority of 0, which is the only one there is; some systems have more fields.
            let parameters: libc::sched_param = std::mem::zeroed();
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters);
        }
    }
}
