//! `cargo xtask demo`: what Larder does, shown on the sample data. Every command is one that a reader can repeat in
//! `target/demo`, which is laid out as an installation is: the program with the folder `plugins` beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::artifacts::{build_host, build_plugins, copy, fresh_directory};
use crate::shell::{is_installed, root, run};

/// Builds, then migrates, verifies and asks.
pub(crate) fn run_demo() -> Result<()> {
    let plugins = build_plugins()?;
    let program = build_host(false)?;

    let (samples, demo) = (root().join("samples"), root().join("target/demo"));
    fresh_directory(&demo)?;
    fs::create_dir(demo.join("plugins"))?;
    fs::create_dir(demo.join("data"))?;
    let larder = demo.join(program.file_name().expect("a program has a name"));
    copy(&program, &larder)?;
    for entry in fs::read_dir(&plugins)? {
        let file = entry?.path();
        copy(&file, &demo.join("plugins").join(file.file_name().expect("a listed file has a name")))?;
    }
    copy(&samples.join("larder.json"), &demo.join("larder.json"))?;
    copy(&samples.join("data/request_database.json"), &demo.join("data/request_database.json"))?;

    // The environment may name another configuration or other plugins; the demo shows its own.
    let step = |about: &str, program: &Path, arguments: &[&str]| {
        println!("\n# {about}");
        let mut command = Command::new(program);
        run(command.current_dir(&demo).args(arguments).env_remove("LARDER_CONFIG").env_remove("LARDER_PLUGINS"))
    };
    println!("\n$ cd {}", demo.display());
    step("Strategies are components in the folder beside the program.", &larder, &["plugins", "list"])?;
    step("Stores are places; larder.json names them.", &larder, &["stores", "list"])?;
    step("The JSON document becomes an SQLite database.", &larder, &["migrate", "--from", "json", "--to", "sqlite"])?;
    step("Every entity is compared, value by value.", &larder, &["verify", "--from", "json", "--to", "sqlite"])?;
    step(
        "A question to the JSON document.",
        &larder,
        &["query", "machines", "--filter", "status=RUNNING", "--order-by", "machine_id"],
    )?;
    step(
        "The same question to the database.",
        &larder,
        &["query", "machines", "--filter", "status=RUNNING", "--order-by", "machine_id", "--store", "sqlite"],
    )?;
    step("And back, into one file a collection.", &larder, &["migrate", "--from", "sqlite", "--to", "archive"])?;
    step("Nothing was lost on the way.", &larder, &["verify", "--from", "json", "--to", "archive"])?;
    if is_installed("sqlite3") {
        let select = "SELECT machine_id, request_id, template_id, status, private_ip FROM machines ORDER BY machine_id";
        step(
            "The database is an ordinary one.",
            Path::new("sqlite3"),
            &["-header", "-column", "request_database.db", select],
        )?;
    } else {
        step("What is in the database:", &larder, &["count", "machines", "--store", "sqlite"])?;
    }
    println!("\nThe demo is in {}: it can be looked at and continued from there.", demo.display());
    Ok(())
}
