//! `cargo xtask test`: everything that the tests need, then the tests.

use std::process::Command;

use anyhow::Result;
use larder_test_cluster::Settings;

use crate::artifacts::{build_plugins_and_guests, guests, host};
use crate::dynamodb::{self, Dynamodb};
use crate::postgres::{self, Postgres};
use crate::shell::{cargo, run};

/// The command that tests what was built, and the services that it needs, which end when this is dropped.
pub(crate) struct Tests {
    pub(crate) command: Command,
    _postgres: Postgres,
    _dynamodb: Dynamodb,
}

/// Builds and tests. `arguments` go to `cargo test` as they are; a package among them replaces the whole workspace.
pub(crate) fn run_tests(arguments: &[&str]) -> Result<()> {
    run(&mut built(arguments)?.command)
}

/// Builds everything and starts what the tests need.
pub(crate) fn built(arguments: &[&str]) -> Result<Tests> {
    let (plugins, guest_directory) = build_plugins_and_guests()?;
    let packages = if names_packages(arguments) { Vec::new() } else { workspace()? };
    // The same selection as the tests', so that each dependency is built once, with one set of features.
    run(cargo()?.args(["build", "--bins", "--tests"]).args(workspace()?))?;
    let mut command = cargo()?;
    command
        .args(["test", "--no-fail-fast"])
        .args(packages)
        .args(arguments)
        .env("LARDER_TEST_PLUGINS", plugins)
        .env("LARDER_TEST_GUESTS", guest_directory)
        .env("LARDER_TEST_BIN", host(false)?);
    let postgres = postgres::start(Settings::default())?;
    command.envs(postgres.variables());
    let dynamodb = dynamodb::start()?;
    command.envs(dynamodb.variables());
    Ok(Tests { command, _postgres: postgres, _dynamodb: dynamodb })
}

/// The arguments that select every package but the guests, which are no programs for this machine.
pub(crate) fn workspace() -> Result<Vec<String>> {
    let mut arguments = vec!["--workspace".to_owned()];
    for guest in guests()? {
        arguments.extend(["--exclude".to_owned(), guest.package]);
    }
    Ok(arguments)
}

fn names_packages(arguments: &[&str]) -> bool {
    let cargos = arguments.iter().take_while(|argument| **argument != "--");
    cargos.into_iter().any(|argument| {
        ["-p", "--package"].contains(argument) || argument.starts_with("-p=") || argument.starts_with("--package=")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_replaces_the_workspace_unless_it_is_meant_for_the_tests() {
        assert!(names_packages(&["-p", "larder"]));
        assert!(names_packages(&["--package=larder"]));
        assert!(!names_packages(&["some_test", "--", "-p"]));
    }
}
