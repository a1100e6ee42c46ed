//! The command line as it is typed: clap's types and their help, no behaviour.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::error::Error;

/// Store JSON entities through sandboxed storage strategies, and migrate them between strategies.
///
/// Data goes to standard output, everything else to standard error.
///
/// Exit codes: 0 done; 1 the answer is no (absent, conflict, rejected, differs); 2 usage or configuration; 3 a plugin was
/// refused, denied or trapped; 4 a store cannot be reached; 5 corrupt data, a limit, or an internal fault; 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "larder", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration [default: $LARDER_CONFIG, else larder.json].
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The directory of the plugins [default: $LARDER_PLUGINS, else `plugins.directory`, else `plugins` beside the program].
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub plugins: Option<PathBuf>,
    /// How results, errors and progress are written.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A store, named in one way by every command.
#[derive(Debug, Args)]
pub struct StoreArg {
    /// A name from `storage.stores`, or a strategy's name for its section [default: storage.strategy].
    #[arg(long, value_name = "STORE")]
    pub store: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Move every entity from one store to another: validated, backed up, verified.
    Migrate(MigrateArgs),
    /// The same as `migrate`, as earlier systems spelt it.
    #[command(name = "migrateRepository", hide = true)]
    MigrateRepository(MigrateRepositoryArgs),
    /// Compare the content of two stores.
    Verify(VerifyArgs),
    /// Print entities by id.
    Get(GetArgs),
    /// Save entities: each is created, or replaced as a whole.
    Save(SaveArgs),
    /// Replace one stored entity as a whole.
    Update(UpdateArgs),
    /// Change members of one stored entity, by JSON merge patch (RFC 7396).
    Patch(UpdateArgs),
    /// Remove entities.
    Delete(DeleteArgs),
    /// Print the entities that a filter holds for.
    Query(QueryArgs),
    /// Count the entities that a filter holds for.
    Count(CountArgs),
    /// Make many writes, all or nothing.
    Apply(ApplyArgs),
    /// Print every entity of a store, one a line: {"collection": …, "entity": …}.
    Export(ExportArgs),
    /// Read what `export` printed; versions and times stay as they are.
    Import(ImportArgs),
    /// Write all that a store holds into one JSON document, which opens as a json store, with a manifest beside it.
    Backup(BackupArgs),
    /// Bring an earlier or damaged state of a store back, or print those that it keeps; what is there is kept beside it.
    Restore(RestoreArgs),
    /// Look after stores.
    #[command(subcommand)]
    Stores(StoresCommand),
    /// Look at plugins.
    #[command(subcommand)]
    Plugins(PluginsCommand),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The store to read.
    #[arg(long, value_name = "STORE")]
    pub from: String,
    /// The store to write.
    #[arg(long, value_name = "STORE")]
    pub to: String,
    /// How.
    #[command(flatten)]
    pub options: MigrateOptions,
}

/// Arguments of `migrateRepository`.
#[derive(Debug, Args)]
pub struct MigrateRepositoryArgs {
    /// The store to read.
    #[arg(long, value_name = "STORE")]
    pub source_type: String,
    /// The store to write.
    #[arg(long, value_name = "STORE")]
    pub target_type: String,
    /// How.
    #[command(flatten)]
    pub options: MigrateOptions,
}

/// How to migrate.
#[derive(Debug, Args)]
pub struct MigrateOptions {
    /// Entities written at once [default: migration.batch_size, else 1000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub batch_size: Option<u32>,
    /// Readers of the source, and writers of batches, that run side by side [default: migration.parallel_workers, else 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: Option<u32>,
    /// Validate everything and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not back up the source.
    #[arg(long)]
    pub no_backup: bool,
    /// Do not read the target back.
    #[arg(long)]
    pub no_verify: bool,
    /// Remove the verified entities from the source.
    #[arg(long)]
    pub cleanup_source: bool,
    /// What to do with an entity that the target holds with other content.
    #[arg(long, value_enum, default_value_t = ExistingArg::Fail)]
    pub existing: ExistingArg,
    /// What to do with an entity that breaks a rule of the target: write nothing at all, or write the entity into a file
    /// beside the state of the migration and move the others.
    #[arg(long, value_enum, default_value_t = OnInvalidArg::Fail)]
    pub on_invalid: OnInvalidArg,
    /// Go on where an earlier run stopped; begin afresh where there is nothing to go on with.
    #[arg(long, conflicts_with_all = ["restart", "dry_run"])]
    pub resume: bool,
    /// Forget an earlier run that was not finished, and begin afresh.
    #[arg(long, conflicts_with = "dry_run")]
    pub restart: bool,
    /// Entities written in a second at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rate: Option<u32>,
    /// Move only this collection (repeatable).
    #[arg(long, value_name = "NAME")]
    pub collection: Vec<String>,
    /// Leave this collection behind (repeatable).
    #[arg(long, value_name = "NAME", conflicts_with = "collection")]
    pub exclude: Vec<String>,
}

/// What to do with an entity that is stored already with other content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExistingArg {
    /// Refuse.
    Fail,
    /// Leave what is stored.
    Skip,
    /// Replace what is stored.
    Overwrite,
}

/// What to do with an entity that breaks a rule of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnInvalidArg {
    /// Write nothing.
    Fail,
    /// Leave it out, and keep it in a file.
    Quarantine,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// One store.
    #[arg(long, value_name = "STORE")]
    pub from: String,
    /// The other store.
    #[arg(long, value_name = "STORE")]
    pub to: String,
    /// Compare only this collection (repeatable).
    #[arg(long, value_name = "NAME")]
    pub collection: Vec<String>,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The collection, such as `requests`.
    pub collection: String,
    /// The ids, in the order to print.
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Arguments of `save`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// The collection, such as `requests`.
    pub collection: String,
    /// A JSON object, an array of them, or one a line [default: standard input].
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Save only where nothing is stored under the id (`absent`), something is (`present`), or this version of it is.
    #[arg(long, value_name = "absent|present|VERSION", value_parser = parse_expectation)]
    pub expect: Option<ExpectArg>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// What `--expect` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectArg {
    /// Nothing is stored.
    Absent,
    /// Something is stored.
    Present,
    /// This version is stored.
    Version(u64),
}

fn parse_expectation(text: &str) -> Result<ExpectArg, String> {
    match text {
        "absent" => Ok(ExpectArg::Absent),
        "present" => Ok(ExpectArg::Present),
        _ => text.parse().map(ExpectArg::Version).map_err(|_| "neither `absent`, `present` nor a version".into()),
    }
}

/// Arguments of `update` and `patch`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// The collection, such as `requests`.
    pub collection: String,
    /// The entity's id.
    pub id: String,
    /// A JSON object: the whole entity, or for `patch` the members to change (null removes one) [default: standard input].
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Write only over this version.
    #[arg(long, value_name = "N")]
    pub expected_version: Option<u64>,
    /// Write only where this holds for the stored entity (repeatable, as --filter of `query`).
    #[arg(long = "if", value_name = "FILTER")]
    pub condition: Vec<String>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The collection, such as `requests`.
    pub collection: String,
    /// The entities' ids.
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// Delete only this version.
    #[arg(long, value_name = "N")]
    pub expected_version: Option<u64>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// What an entity must be like.
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// `field=value`, also != < <= > >= ^= (begins with) ~= (contains), or `field` alone (exists). Repeated: all must hold.
    #[arg(long, value_name = "EXPR")]
    pub filter: Vec<String>,
    /// A filter as a JSON tree: {"any": [{"field": "status", "op": "in", "value": ["PENDING"]}, …]}.
    #[arg(long, value_name = "TREE")]
    pub filter_json: Option<String>,
}

/// Arguments of `query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// The collection, such as `requests`.
    pub collection: String,
    /// What must hold.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Sort by this field (repeatable); `FIELD:desc` for the largest first.
    #[arg(long, value_name = "FIELD[:desc]")]
    pub order_by: Vec<String>,
    /// Print at most this many. Where there may be more, standard error ends with `next: --cursor CURSOR`, or
    /// {"next": CURSOR} with --format json.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Go on where the same query ended before: its CURSOR.
    #[arg(long, value_name = "CURSOR", conflicts_with = "explain")]
    pub cursor: Option<String>,
    /// Use this index of the collection (--explain tells which one is used otherwise).
    #[arg(long, value_name = "NAME")]
    pub index: Option<String>,
    /// Say how it was answered instead of printing entities.
    #[arg(long)]
    pub explain: bool,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Arguments of `count`.
#[derive(Debug, Args)]
pub struct CountArgs {
    /// The collection, such as `requests`.
    pub collection: String,
    /// What must hold.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// One write a line: {"op": "save|update|patch|delete", "collection": …, "id": …, "entity": …, "expected_version": …}
    /// [default: standard input].
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Print only this collection (repeatable).
    #[arg(long, value_name = "NAME")]
    pub collection: Vec<String>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What `export` printed [default: standard input].
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// What to do with an entity that is stored already with other content.
    #[arg(long, value_enum, default_value_t = ExistingArg::Fail)]
    pub existing: ExistingArg,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The restore point, by its name [default: print all, the newest first].
    pub point: Option<String>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// A folder, or a file that ends in .json; nothing that is there is replaced [default: `migration.backup_location`].
    #[arg(long, value_name = "PLACE")]
    pub to: Option<PathBuf>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArg,
}

/// Commands about stores.
#[derive(Debug, Subcommand)]
pub enum StoresCommand {
    /// Print the stores that the configuration describes.
    List,
    /// Say whether stores can be reached, read and written, and what is in them [default: all].
    Check {
        /// A name from `storage.stores`, or a strategy's name for its section [default: every store that is described].
        #[arg(long, value_name = "STORE")]
        store: Option<String>,
    },
    /// Leave a store as people and other programs expect to find it, with nothing beside it that a process left which was
    /// killed. Other commands do so when they end.
    Flush {
        /// The store.
        #[command(flatten)]
        store: StoreArg,
    },
    /// Make the tables, indexes and files that are missing.
    Prepare {
        /// Only say what would be made.
        #[arg(long)]
        dry_run: bool,
        /// Also add what tables only lack, such as the column of a field that was declared later.
        #[arg(long)]
        extend: bool,
        /// The store.
        #[command(flatten)]
        store: StoreArg,
    },
}

/// Commands about plugins.
#[derive(Debug, Subcommand)]
pub enum PluginsCommand {
    /// Print the plugins in the plugins directory.
    List,
    /// Print what a component is made of, what it wants, and the store that would grant it. The file is read and nothing of
    /// it runs, so it may be a stranger's. Ends with an error where the component would not be loaded.
    Inspect {
        /// The component.
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Also run it, to ask for its version, its features and the keys of its section: compiled, in a sandbox that lends
        /// it nothing, for five seconds at most.
        #[arg(long)]
        describe: bool,
    },
    /// Pin the plugins that are in the plugins directory now, in `plugins.lock` beside the configuration. From then on no
    /// other one is loaded.
    Pin {
        /// Only say whether the plugins are those that are pinned.
        #[arg(long)]
        check: bool,
    },
    /// Hold a component against the contract: every promise, on warm and on fresh instances.
    Test(PluginsTestArgs),
}

/// Arguments of `plugins test`.
#[derive(Debug, Args)]
pub struct PluginsTestArgs {
    /// The component. Its stem is the strategy's name.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The store to test with, as in `storage.stores` but without `strategy`: JSON, or a file that holds it. In its strings
    /// ${SCRATCH} is an empty folder, and ${CASE} a word that is new for each case. A store that has neither must be empty,
    /// and is emptied after each case [default: what the component wants, in the scratch folder].
    #[arg(long, value_name = "JSON|FILE")]
    pub store_config: Option<String>,
    /// Run only the cases with this in their names, with --faults the operations (repeatable).
    #[arg(long, value_name = "NAME")]
    pub case: Vec<String>,
    /// Print the names of the cases, with --faults of the operations, and run none.
    #[arg(long)]
    pub list: bool,
    /// Let every call of the plugin to the host go wrong, one at a time and in every way, and look at what becomes of the
    /// store.
    #[arg(long)]
    pub faults: bool,
    /// With --faults: try one of so many faults only.
    #[arg(long, value_name = "N", requires = "faults", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub every: u32,
    /// Be the host that is killed: a task of --faults, read from standard input.
    #[arg(long, hide = true)]
    pub until_killed: bool,
}

/// Commands about the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration, and the section of every store against its plugin.
    Check,
    /// Print the JSON Schema of every configuration.
    Schema,
    /// Print the configuration as it was understood, with defaults and without secrets.
    Show,
}

/// The error for a program to read where `arguments` could not be parsed and ask for JSON; none where people read it, and
/// where it is no mistake but a wish for help.
pub fn usage_error(refused: &clap::Error, arguments: impl IntoIterator<Item = OsString>) -> Option<Error> {
    if matches!(refused.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) || !asks_for_json(arguments) {
        return None;
    }
    let lacks_command = [ErrorKind::MissingSubcommand, ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand];
    if lacks_command.contains(&refused.kind()) {
        return Some(Error::usage("a command is missing").hint("`larder --help` lists the commands"));
    }
    // The message, perhaps a tip, and how the command is used: paragraphs of one line or of several.
    let text = refused.to_string();
    let paragraphs: Vec<String> =
        text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let message = paragraphs[0].strip_prefix("error: ").unwrap_or(&paragraphs[0]);
    let advice = paragraphs[1..].iter().filter(|it| it.starts_with("tip: ") || it.starts_with("Usage: "));
    let advice: Vec<&str> = advice.map(|it| it.strip_prefix("tip: ").unwrap_or(it)).collect();
    let error = Error::usage(message);
    Some(if advice.is_empty() { error } else { error.hint(advice.join("; ")) })
}

/// As far as it can be told of arguments that do not parse.
fn asks_for_json(arguments: impl IntoIterator<Item = OsString>) -> bool {
    let mut format = None;
    let mut is_value = false;
    for argument in arguments.into_iter().take_while(|argument| argument != "--") {
        let argument = argument.to_string_lossy();
        if let Some(value) = argument.strip_prefix("--format=").or(is_value.then_some(&*argument)) {
            format = Format::from_str(value, false).ok();
        }
        is_value = argument == "--format";
    }
    format == Some(Format::Json)
}
