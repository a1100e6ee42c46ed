//! The commands, one file each. A command takes its arguments as typed, does its work through a repository, and tells
//! the printer what came of it.

mod apply;
mod backup;
mod config;
mod count;
mod delete;
mod export;
mod get;
mod import;
mod input;
mod migrate;
mod patch;
mod plugins;
mod query;
mod restore;
mod save;
mod stores;
mod update;
mod verify;

use clap::CommandFactory;

use crate::cli::{Cli, Command, FilterArgs, Format};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::migration::entities;
use crate::model::filter::{self, Filter};
use crate::output::{self, Printer};
use crate::repository::Repository;
use crate::scheduling;

/// What every command has.
struct Context {
    host: Host,
    printer: Printer,
}

impl Context {
    /// Opens a store and passes its warnings on.
    async fn open(&self, store: Option<&str>) -> Result<Repository> {
        let repository = self.host.open(store).await?;
        for warning in repository.opened().warnings {
            output::warning(self.printer.format(), &warning);
        }
        Ok(repository)
    }
}

/// Runs the command to its end.
pub fn run(cli: Cli) -> Result<()> {
    let mut printer = Printer::new(cli.format);
    // What needs no configuration must work without one.
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "larder", &mut script);
            printer.verbatim(&String::from_utf8_lossy(&script))?;
            return printer.finish();
        }
        Command::Config(crate::cli::ConfigCommand::Schema) => {
            printer.document(&crate::config::schema())?;
            return printer.finish();
        }
        Command::Plugins(crate::cli::PluginsCommand::Test(args)) => {
            let done = runtime()?.block_on(async {
                let _too_large = outlive_file_size_limit();
                plugins::test::run(&mut printer, args).await
            });
            let finished = printer.finish();
            return done.and(finished);
        }
        _ => {}
    }
    if moves_many(&cli.command) {
        // Before anything starts a thread.
        scheduling::as_batch();
    }
    let config = Config::load(cli.config.as_deref())?;
    for warning in config.warnings() {
        output::warning(cli.format, warning);
    }
    let host = Host::new(config, cli.plugins.as_deref())?;
    let mut context = Context { host, printer };
    let done = runtime()?.block_on(async {
        let _too_large = outlive_file_size_limit();
        let done = dispatch(cli.command, &mut context).await;
        // What was acknowledged is safe without it, so the exit code is that of the command.
        for problem in context.host.close().await {
            output::warning(cli.format, &output::line(&problem));
        }
        done
    });
    let finished = context.printer.finish();
    done.and(finished)
}

/// Whether the command goes through whole stores.
fn moves_many(command: &Command) -> bool {
    matches!(
        command,
        Command::Migrate(_)
            | Command::MigrateRepository(_)
            | Command::Verify(_)
            | Command::Export(_)
            | Command::Import(_)
            | Command::Backup(_)
            | Command::Restore(_)
    )
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::refused("cannot start the runtime").caused_by(error))
}

/// A file that may not grow any further is an error to tell of, and not the end of the process: with a handler in place,
/// the write fails instead. Where there can be none, all is as it was.
#[cfg(unix)]
fn outlive_file_size_limit() -> Option<tokio::signal::unix::Signal> {
    use tokio::signal::unix::{SignalKind, signal};
    /// The same number on Linux and macOS.
    const SIGXFSZ: i32 = 25;
    signal(SignalKind::from_raw(SIGXFSZ)).ok()
}

#[cfg(not(unix))]
fn outlive_file_size_limit() {}

async fn dispatch(command: Command, context: &mut Context) -> Result<()> {
    match command {
        Command::Migrate(args) => migrate::run(context, &args.from, &args.to, args.options).await,
        Command::MigrateRepository(args) => {
            migrate::run(context, &args.source_type, &args.target_type, args.options).await
        }
        Command::Verify(args) => verify::run(context, args).await,
        Command::Get(args) => get::run(context, args).await,
        Command::Save(args) => save::run(context, args).await,
        Command::Update(args) => update::run(context, args).await,
        Command::Patch(args) => patch::run(context, args).await,
        Command::Delete(args) => delete::run(context, args).await,
        Command::Query(args) => query::run(context, args).await,
        Command::Count(args) => count::run(context, args).await,
        Command::Apply(args) => apply::run(context, args).await,
        Command::Export(args) => export::run(context, args).await,
        Command::Import(args) => import::run(context, args).await,
        Command::Backup(args) => backup::run(context, args).await,
        Command::Restore(args) => restore::run(context, args).await,
        Command::Stores(command) => stores::run(context, command).await,
        Command::Plugins(command) => plugins::run(context, command).await,
        Command::Config(command) => config::run(context, command).await,
        Command::Completions { .. } => Ok(()),
    }
}

/// The conjunction of all that was said about a filter.
fn filter_of(args: &FilterArgs) -> Result<Option<Filter>> {
    let mut parts = conditions(&args.filter)?;
    if let Some(tree) = &args.filter_json {
        let tree = crate::model::json::parse(tree.as_bytes())
            .map_err(|error| Error::usage("--filter-json is not JSON").caused_by(error))?;
        parts.push(filter::parse_json(&tree).map_err(|error| {
            Error::from(error).hint(
                "a tree is {\"field\": …, \"op\": …, \"value\": …}, {\"all\": […]}, {\"any\": […]}, {\"not\": …}, \
                 or equalities {\"FIELD\": VALUE, …}",
            )
        })?);
    }
    Ok(conjunction(parts))
}

fn conditions(expressions: &[String]) -> Result<Vec<Filter>> {
    let parse = |expression: &String| {
        filter::parse_expression(expression).map_err(|error| {
            Error::from(error).hint(
                "a filter is FIELD=VALUE, or with != < <= > >= ^= (begins with) ~= (contains), or FIELD alone (exists); \
                 a field with such a character, and a value that begins with one, are JSON strings",
            )
        })
    };
    expressions.iter().map(parse).collect()
}

fn conjunction(mut parts: Vec<Filter>) -> Option<Filter> {
    match parts.len() {
        0 => None,
        1 => parts.pop(),
        _ => Some(Filter::All(parts)),
    }
}

/// Whether progress and results are for a program to read.
fn is_json(context: &Context) -> bool {
    context.printer.format() == Format::Json
}
