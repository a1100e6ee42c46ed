//! DynamoDB for whoever needs one: the tests, and `cargo xtask dynamodb` for people who want to try. It is an engine that
//! answers as the service does (`dynoxide`), and beside it one that answers as Application Auto Scaling does (`moto`).
//!
//! Both are installed the first time. They are started for each command and gone with it (`tests/engine`). Those that are
//! named in the environment are used instead, so that tests can be run again and again without waiting for them.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use larder_test_engine::{
    CREDENTIALS, Engine, PROGRAM_VARIABLE, REGION, SCALING_URL_VARIABLE, Scaling, Storage, URL_VARIABLE,
};

use crate::tools::{Tool, ensure_from_pypi, ensure_installed, tools_directory};

/// The engine, without its server for assistants.
const DYNOXIDE: Tool = Tool {
    package: "dynoxide-rs",
    program: "dynoxide",
    version: "3.2.0",
    arguments: &["--no-default-features", "--features", "native-sqlite,http-server,cli"],
};
const MOTO_VERSION: &str = "5.2.5";

/// Both services for a command, and what the command's programs find them by.
pub(crate) struct Dynamodb {
    /// None where the environment names them.
    services: Option<(Engine, Scaling)>,
}

impl Dynamodb {
    /// The variables that say where they are, none of those that are in the environment already.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables: Vec<(&str, String)> = CREDENTIALS.map(|(name, value)| (name, value.to_owned())).into();
        if let Some((engine, scaling)) = &self.services {
            variables.extend(engine.variables());
            variables.extend(scaling.variables());
        }
        variables
    }
}

/// Starts both, unless the environment names them.
pub(crate) fn start() -> Result<Dynamodb> {
    let named = [URL_VARIABLE, PROGRAM_VARIABLE, SCALING_URL_VARIABLE].map(|name| std::env::var_os(name).is_some());
    match named {
        [true, true, true] => return Ok(Dynamodb { services: None }),
        [false, false, false] => {}
        _ => bail!("of {URL_VARIABLE}, {PROGRAM_VARIABLE} and {SCALING_URL_VARIABLE} set all or none"),
    }
    let engine = Engine::start(&ensure_dynoxide()?, Storage::Memory)?;
    let scaling = Scaling::start(&ensure_moto()?)?;
    println!(
        "an engine for DynamoDB runs at {}, and one for Application Auto Scaling at {}",
        engine.url(),
        scaling.url()
    );
    Ok(Dynamodb { services: Some((engine, scaling)) })
}

/// Runs both until somebody ends this command.
pub(crate) fn run_in_foreground(arguments: &[&str]) -> Result<()> {
    let [] = *arguments else { bail!("usage: cargo xtask dynamodb") };
    let mut engine = Engine::start(&ensure_dynoxide()?, Storage::Memory)?;
    let scaling = Scaling::start(&ensure_moto()?)?;
    println!("An engine for DynamoDB runs at {}, without tables, until Ctrl-C.\n", engine.url());
    println!("A store in larder.json:\n\n{}\n", configuration(&engine));
    println!("What larder and other programs need to be told; nobody checks it:\n");
    for (name, value) in CREDENTIALS {
        println!("  export {name}='{value}'");
    }
    println!("\nFor `auto_scaling`, of which the engine knows nothing:\n");
    println!("  export AWS_ENDPOINT_URL_APPLICATION_AUTO_SCALING='{}'\n", scaling.url());
    println!("So that `cargo xtask test` uses them:\n");
    for (name, value) in engine.variables().into_iter().chain(scaling.variables()) {
        println!("  export {name}='{value}'");
    }
    let status = engine.wait()?;
    bail!("the engine ended: {status}\n{}", engine.log())
}

fn configuration(engine: &Engine) -> String {
    format!(
        r#"{{
  "storage": {{
    "strategy": "dynamodb",
    "dynamodb_strategy": {{"region": "{REGION}", "endpoint_url": "{}"}}
  }}
}}"#,
        engine.url()
    )
}

/// The engine's program, which is built where it is not there.
pub(crate) fn ensure_dynoxide() -> Result<PathBuf> {
    ensure_installed(&DYNOXIDE, &tools_directory()?)
}

fn ensure_moto() -> Result<PathBuf> {
    ensure_from_pypi("moto", "[server]", MOTO_VERSION, "moto_server").context(
        "moto is needed, which answers as Application Auto Scaling does: it is installed with python3, its module venv \
         and PyPI",
    )
}
