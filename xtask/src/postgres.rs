//! PostgreSQL for whoever needs one: the tests, the measurements, and `cargo xtask postgres` for people who want to try.
//!
//! The programs are those of the machine; where there are none they are installed, if that is possible. A cluster is made
//! for each command and gone with it (`tests/cluster`). One that is named in the environment is used instead, so that
//! tests can be run again and again without waiting for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use larder_test_cluster::{
    Cluster, PROGRAMS_VARIABLE, ROLE, SUPERUSER_URL_VARIABLE, Settings, URL_VARIABLE, find_programs,
};

use crate::tools::{can_install_packages, install_package};

/// Read by `pg_createcluster`. Without it the installation would leave a server of its own behind, running.
const NO_CLUSTER: (&str, &str) =
    ("/etc/postgresql-common/createcluster.d/larder.conf", "create_main_cluster = false\n");

/// A cluster for a command, and what the command's programs find it by.
pub(crate) struct Postgres {
    /// None where the environment names one.
    cluster: Option<Cluster>,
}

impl Postgres {
    /// The variables that say where it is, none where they are in the environment already.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        self.cluster.iter().flat_map(Cluster::variables).collect()
    }
}

/// Starts a cluster, unless the environment names one.
pub(crate) fn start(settings: Settings) -> Result<Postgres> {
    let named = [URL_VARIABLE, SUPERUSER_URL_VARIABLE, PROGRAMS_VARIABLE].map(|name| std::env::var_os(name).is_some());
    match named {
        [true, true, true] => return Ok(Postgres { cluster: None }),
        [false, false, false] => {}
        _ => bail!("of {URL_VARIABLE}, {SUPERUSER_URL_VARIABLE} and {PROGRAMS_VARIABLE} set all or none"),
    }
    let cluster = Cluster::start(&ensure_programs()?, settings)?;
    println!("PostgreSQL runs on 127.0.0.1:{}", cluster.port());
    Ok(Postgres { cluster: Some(cluster) })
}

/// Runs a cluster until somebody ends this command.
pub(crate) fn run_in_foreground(arguments: &[&str]) -> Result<()> {
    let [] = *arguments else { bail!("usage: cargo xtask postgres") };
    let mut cluster = Cluster::start(&ensure_programs()?, Settings::default())?;
    println!("PostgreSQL runs on 127.0.0.1:{}, with nothing in it, until Ctrl-C.\n", cluster.port());
    println!("A store in larder.json:\n\n{}\n", configuration(&cluster));
    println!("With psql:\n\n  psql '{}'\n", cluster.url("postgres"));
    println!("So that `cargo xtask test` uses it:\n");
    for (name, value) in cluster.variables() {
        println!("  export {name}='{value}'");
    }
    let status = cluster.wait()?;
    bail!("PostgreSQL ended: {status}\n{}", cluster.log())
}

/// With the password, which is good for nothing else and for as long as this runs.
fn configuration(cluster: &Cluster) -> String {
    let (port, password) = (cluster.port(), cluster.password());
    format!(
        r#"{{
  "storage": {{
    "strategy": "sql",
    "sql_strategy": {{
      "type": "postgresql", "host": "127.0.0.1", "port": {port}, "name": "postgres",
      "username": "{ROLE}", "password": "{password}"
    }}
  }}
}}"#
    )
}

/// The folder of the programs, which are installed where there are none and that is possible.
pub(crate) fn ensure_programs() -> Result<PathBuf> {
    if let Some(folder) = find_programs() {
        return Ok(folder);
    }
    let needed = "PostgreSQL is needed (initdb, postgres, pg_ctl; version 13 or later) and was not found on the path, in \
                  /usr/lib/postgresql or by pg_config";
    if !can_install_packages() {
        bail!("{needed}: install it, on Debian and Ubuntu with `apt-get install postgresql`");
    }
    install().with_context(|| format!("{needed}, and could not be installed"))?;
    find_programs().context("the package `postgresql` is installed, and its programs are not in /usr/lib/postgresql")
}

fn install() -> Result<()> {
    install_package("postgresql-common")?;
    let (path, line) = NO_CLUSTER;
    fs::create_dir_all(Path::new(path).parent().expect("a file lies in a folder"))?;
    fs::write(path, line).with_context(|| format!("cannot write {path}"))?;
    let installed = install_package("postgresql");
    fs::remove_file(path).with_context(|| format!("cannot remove {path}"))?;
    installed
}
