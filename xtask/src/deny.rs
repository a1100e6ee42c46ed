//! `cargo deny`: licences, sources and bans of the dependencies, by the policy in `deny.toml`. The tool is built from
//! crates.io the first time, into a folder that outlives the clone, because it takes longer than all other checks.

use std::process::Command;

use anyhow::Result;

use crate::shell::{root, run};
use crate::tools::{Tool, ensure_installed, tools_directory};

/// Pinned, so that the same tree gets the same answer on each machine.
const CARGO_DENY: Tool = Tool {
    package: "cargo-deny",
    program: "cargo-deny",
    version: "0.20.2",
    // Unoptimized it is built in half the time, and runs a second longer.
    arguments: &["--no-default-features", "--debug"],
};

/// Holds the dependencies against the policy. Not against the database of advisories, which is not on crates.io.
pub(crate) fn check_dependencies() -> Result<()> {
    let program = ensure_installed(&CARGO_DENY, &tools_directory()?)?;
    run(Command::new(program).current_dir(root()).args(["--locked", "check", "bans", "licenses", "sources"]))
}
