//! Running other programs: each command is printed as a person would type it, and must succeed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The workspace. Asked for at run time: with a target folder that several clones share, this program may have been
/// built in another one.
pub(crate) fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().expect("this crate stands inside the workspace").to_path_buf()
}

/// Where cargo builds.
pub(crate) fn target_directory() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => std::path::absolute(&directory).context("CARGO_TARGET_DIR is no path"),
        None => Ok(root().join("target")),
    }
}

/// Cargo, in the workspace and with its own target folder.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("CARGO_TARGET_DIR", target_directory()?);
    // What `cargo run` set for this program would reach build scripts, and have those that look at it run again.
    for (name, _) in std::env::vars_os() {
        let leaked = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| leaked.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(&name);
        }
    }
    Ok(command)
}

/// Prints the command and runs it to its end, which has to be a success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let name = program_name(command);
    let status = command.status().with_context(|| format!("{name} cannot be run"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

/// Prints the command, for one that is run in another way.
pub(crate) fn announce(command: &Command) {
    println!("\n$ {}", shown(command));
}

/// What a successful command printed. The command itself is not shown.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = program_name(command);
    let output = command.output().with_context(|| format!("{name} cannot be run"))?;
    if !output.status.success() {
        bail!("{name} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed something that is not UTF-8"))
}

/// Whether a program can be started at all.
pub(crate) fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Adds Rust's standard library for plugins where the toolchain lacks it.
pub(crate) fn ensure_wasm_target() -> Result<()> {
    let target = crate::artifacts::WASM_TARGET;
    let libraries =
        output(Command::new("rustc").current_dir(root()).args(["--print", "target-libdir", "--target", target]))?;
    if Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    run(Command::new("rustup").current_dir(root()).args(["target", "add", target]))
        .with_context(|| format!("Rust's standard library for {target} is missing and could not be added"))
}

/// As it is called from the folder that the command runs in. Cargo sets its own full path, which nobody would type.
fn program_name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    if program.file_stem() == Some(OsStr::new("cargo")) {
        return "cargo".into();
    }
    match command.get_current_dir().and_then(|directory| program.strip_prefix(directory).ok()) {
        Some(program) => format!("./{}", program.display()),
        None => program.display().to_string(),
    }
}

/// The command as typed into a shell; of the environment only what matters to a person.
fn shown(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value
            && name != "CARGO_TARGET_DIR"
            // Of a server that is gone before anybody could type this.
            && !is_of_a_service(&name.to_string_lossy())
        {
            words.push(format!("{}={}", name.display(), quoted(value)));
        }
    }
    words.push(program_name(command));
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

fn is_of_a_service(variable: &str) -> bool {
    let prefixes = ["LARDER_TEST_POSTGRES", "LARDER_TEST_DYNAMODB", "LARDER_TEST_MOTO", "AWS_"];
    prefixes.iter().any(|prefix| variable.starts_with(prefix))
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["test", "--filter", "it's", "a b", ""]).env("RUSTDOCFLAGS", "-D warnings");
        command.env("CARGO_TARGET_DIR", "/elsewhere").env_remove("CARGO_PKG_NAME");
        assert_eq!(shown(&command), r"RUSTDOCFLAGS='-D warnings' cargo test --filter 'it'\''s' 'a b' ''");
        assert_eq!(shown(Command::new("/demo/larder").current_dir("/demo").arg("stores")), "./larder stores");
    }
}
