//! The long forms of tests that take minutes: `cargo xtask crash` and `cargo xtask contention`, which start processes of
//! their own and kill some of them (`tests/it/crash.rs` and `tests/it/contention.rs`), `cargo xtask interruptions`, which
//! kills migrations (`tests/it/resuming.rs`), `cargo xtask faults`, `cargo xtask pairs`, `cargo xtask clients` and
//! `cargo xtask endurance`. The tests print what was done.

use anyhow::{Context, Result, bail};

use crate::shell;
use crate::test;

/// Kills processes while they write, at least `--kills N` of them.
pub(crate) fn crash(arguments: &[&str]) -> Result<()> {
    let ["--kills", kills] = *arguments else { bail!("usage: cargo xtask crash --kills N") };
    let kills: u32 = kills.parse().with_context(|| format!("{kills} is no number of kills"))?;
    run("crash::", "LARDER_CRASH_KILLS", &kills.to_string())
}

/// Kills migrations while they run, at least `--kills N` of them for each pair of stores, and goes on with them.
pub(crate) fn interruptions(arguments: &[&str]) -> Result<()> {
    let ["--kills", kills] = *arguments else { bail!("usage: cargo xtask interruptions --kills N") };
    let kills: u32 = kills.parse().with_context(|| format!("{kills} is no number of kills"))?;
    run("resuming::a_killed", "LARDER_MIGRATION_KILLS", &kills.to_string())
}

/// Lets every call of every plugin go wrong (`tests/it/faults.rs`), in migrations too (`tests/it/migration_faults.rs`).
pub(crate) fn faults(arguments: &[&str]) -> Result<()> {
    let [] = *arguments else { bail!("usage: cargo xtask faults") };
    run("faults::", "LARDER_FAULTS_ALL", "1")
}

/// Moves 20,000 entities that are easy to damage from every kind of store to every other one (`tests/it/pairs.rs`).
pub(crate) fn pairs(arguments: &[&str]) -> Result<()> {
    let [] = *arguments else { bail!("usage: cargo xtask pairs") };
    run("pairs::", "LARDER_PAIRS_ENTITIES", "20000")
}

/// Holds 64 clients at once at PostgreSQL for a minute (`tests/it/postgres.rs`).
pub(crate) fn clients(arguments: &[&str]) -> Result<()> {
    let [] = *arguments else { bail!("usage: cargo xtask clients") };
    run("postgres::many_clients", "LARDER_CLIENTS_SECONDS", "60")
}

/// Makes `--calls N` of which one in a hundred traps or overruns its time, and looks at what the process still holds
/// (`tests/it/zoo.rs`).
pub(crate) fn endurance(arguments: &[&str]) -> Result<()> {
    let ["--calls", calls] = *arguments else { bail!("usage: cargo xtask endurance --calls N") };
    let calls: u32 = calls.parse().with_context(|| format!("{calls} is no number of calls"))?;
    run("zoo::a_host_that_met_traps", "LARDER_ENDURANCE_CALLS", &calls.to_string())
}

/// Lets 16 processes meet at one store, of each kind after the other.
pub(crate) fn contention(arguments: &[&str]) -> Result<()> {
    let [] = *arguments else { bail!("usage: cargo xtask contention") };
    run("contention::", "LARDER_CONTENTION_FULL", "1")
}

fn run(tests: &str, variable: &str, value: &str) -> Result<()> {
    let arguments = ["-p", "larder-tests", "--test", "it", "--", tests, "--nocapture", "--test-threads=1"];
    shell::run(test::built(&arguments)?.command.env(variable, value))
}
