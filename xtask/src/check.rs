//! `cargo xtask check`: what can be said about the project without running it.

use anyhow::Result;

use crate::artifacts::{WASM_TARGET, guests, plugins};
use crate::deny::check_dependencies;
use crate::shell::{cargo, ensure_wasm_target, run};
use crate::test::workspace;
use crate::tidy;

/// Runs the cheap checks first.
pub(crate) fn run_checks() -> Result<()> {
    run(cargo()?.args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    check_dependencies()?;

    let workspace = workspace()?;
    run(cargo()?.args(["clippy", "--all-targets"]).args(&workspace).args(["--", "-D", "warnings"]))?;

    // Plugins and guests once more as what they are: parts of them are compiled for no other target.
    ensure_wasm_target()?;
    let mut clippy = cargo()?;
    clippy.args(["clippy", "--target", WASM_TARGET]);
    for component in plugins()?.into_iter().chain(guests()?) {
        clippy.args(["--package", &component.package]);
    }
    run(clippy.args(["--", "-D", "warnings"]))?;

    run(cargo()?.args(["doc", "--no-deps"]).args(&workspace).env("RUSTDOCFLAGS", "-D warnings"))
}
