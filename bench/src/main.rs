//! Measures larder beside what it is held against, in one run on one machine: `cargo xtask bench`.
//!
//! - [`boundary`]: the same strategy natively and as a component, and beside one `INSERT` a row.
//! - [`documents`]: what the `json` strategy promises: flat saves, shared syncs, warm reads, opening, memory.
//! - [`statements`]: databases, also beside the same statements sent by a program without larder.
//! - [`dynamodb`]: DynamoDB, beside the same calls of a program without larder.
//! - [`migration`]: the program beside others, as whole processes.
//! - [`scale`]: a migration of millions, beside one of few.
//!
//! A subject is one file with a function that gives tables ([`report::Section`]), and is listed in `SUBJECTS`. How contestants take turns is in
//! [`measure`], what is printed in [`report`], and [`native`] lends a strategy what a component is lent.

mod boundary;
mod documents;
mod dynamodb;
mod measure;
mod migration;
mod native;
mod report;
mod scale;
mod statements;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::runtime::Runtime;

use report::Section;

/// The program's, on either side.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What a subject is called, and what measures it.
type Subject = (&'static str, fn(&Settings, &Runtime) -> Result<Vec<Section>>);

const SUBJECTS: &[Subject] = &[
    ("boundary", boundary::measure),
    ("statements", statements::measure),
    ("json", documents::measure),
    ("dynamodb", dynamodb::measure),
    ("migration", migration::measure),
    ("scale", scale::measure),
];

/// Where things are, and how long to measure.
#[derive(Debug, Parser)]
struct Settings {
    /// The folder of the plugins.
    #[arg(long)]
    plugins: PathBuf,
    /// The program.
    #[arg(long)]
    larder: PathBuf,
    /// The programs that migrations are measured beside.
    #[arg(long)]
    sqlite_utils: Option<PathBuf>,
    #[arg(long)]
    pgloader: Option<PathBuf>,
    #[arg(long)]
    ingestr: Option<PathBuf>,
    /// The folder of PostgreSQL's programs.
    #[arg(long)]
    postgres: PathBuf,
    /// The engine's program.
    #[arg(long)]
    dynamodb: PathBuf,
    /// A folder on the disk to measure on.
    #[arg(long)]
    work: PathBuf,
    /// Where the tables go.
    #[arg(long)]
    out: PathBuf,
    /// Fewer entities and rounds: for trying things out, not for numbers, and no bound fails it.
    #[arg(long)]
    quick: bool,
    /// One subject alone.
    #[arg(long, value_parser = SUBJECTS.iter().map(|(name, _)| *name).collect::<Vec<_>>())]
    only: Option<String>,
}

impl Settings {
    /// Numbers of machines that are measured with.
    fn counts(&self) -> &'static [usize] {
        if self.quick { &[2_000] } else { &[20_000, 100_000] }
    }

    /// How often each is measured, after a round that does not count.
    fn rounds(&self) -> usize {
        if self.quick { 3 } else { 7 }
    }

    /// An empty folder that goes when it is dropped.
    fn folder(&self) -> Result<tempfile::TempDir> {
        tempfile::tempdir_in(&self.work).with_context(|| format!("cannot make a folder in {}", self.work.display()))
    }
}

fn main() -> ExitCode {
    match run(&Settings::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it may end well: every bound holds.
fn run(settings: &Settings) -> Result<bool> {
    let machine = report::machine();
    let runtime = Runtime::new()?;
    // Dropped outside of the runtime, a transaction could not roll back.
    let _entered = runtime.enter();
    let mut sections = Vec::new();
    for (name, measure) in SUBJECTS {
        if settings.only.as_ref().is_none_or(|only| only == name) {
            eprintln!("{name} …");
            sections.extend(measure(settings, &runtime).with_context(|| format!("cannot measure {name}"))?);
        }
    }
    std::fs::write(&settings.out, report::markdown(&machine, &sections, settings.rounds()))
        .with_context(|| format!("cannot write {}", settings.out.display()))?;
    let broken: Vec<String> = sections.iter().flat_map(Section::broken).collect();
    for broken in &broken {
        eprintln!("over its bound: {broken}");
    }
    // The short form is too short to judge.
    Ok(settings.quick || broken.is_empty())
}
