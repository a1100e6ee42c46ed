//! `cargo xtask soak`: random operations and questions on every strategy for as long as somebody wants to wait. The tests do
//! the work (`tests/it/model.rs` and `tests/it/queries.rs`); here they are told for how long, and the operations are added up.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::shell::announce;
use crate::test;

/// One thread for each strategy, however many there come to be, so that all of them run for the whole time.
const THREADS: &str = "--test-threads=32";

/// Runs the model for `--seconds N`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let ["--seconds", seconds] = *arguments else { bail!("usage: cargo xtask soak --seconds N") };
    let seconds: u32 = seconds.parse().with_context(|| format!("{seconds} is no number of seconds"))?;
    let mut tests =
        test::built(&["-p", "larder-tests", "--test", "it", "--", "model::", "queries::", "--nocapture", THREADS])?;
    let command = &mut tests.command;
    command.env("LARDER_SOAK_SECONDS", seconds.to_string()).stdout(Stdio::piped());
    announce(command);
    let mut child = command.spawn().context("cargo cannot be run")?;
    let (mut places, mut sequences, mut operations) = (0, 0, 0);
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.context("what the tests print cannot be read")?;
        println!("{line}");
        if let Some(done) = done(&line) {
            places += 1;
            sequences += done.0;
            operations += done.1;
        }
    }
    let status = child.wait()?;
    println!("{operations} operations in {sequences} sequences on {places} strategies in {seconds} s");
    if !status.success() {
        bail!("a strategy does not do as the reference does: the seed that repeats it stands above");
    }
    if operations == 0 {
        bail!("nothing was run");
    }
    Ok(())
}

/// Sequences and operations, from the line that the model ends with.
fn done(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.split_once("model of ")?.1.split_once(": ")?;
    let mut counts = counts.split(", ").map(|count| count.split(' ').next()?.parse::<u64>().ok());
    Some((counts.next()??, counts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_read_from_the_line_that_says_so() {
        let line = "model of sql_sqlite_strict: 117 sequences, 5371 operations, 2099 of them refused";
        assert_eq!(done(line), Some((117, 5371)));
        assert_eq!(done(&format!("test model::sql_sqlite_strict ... {line}")), Some((117, 5371)));
        assert_eq!(done("test model::sql_sqlite_strict ... ok"), None);
    }
}
