//! What is written becomes what is meant: stores with their grants, collections, settings.
//!
//! This is the one place where code branches on a strategy's name: what the built-in strategies may borrow follows from
//! their section, what others may borrow is written beside theirs.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::environment::{self, Variables};
use super::schema::{self, key_path, unknown_key};
use super::written::{self, BillingMode, DatabaseType, Document, DynamodbStrategy, JsonStrategy, SqlStrategy, SslMode};
use super::{
    AutoScaling, Config, DynamodbGrant, FilesGrant, Grants, MigrationSettings, PluginSettings, Pool, Provisioned,
    Secret, Server, SqlGrant, Store, TlsMode, absolute, collections, compile_cache_directory,
    default_plugins_directory, network,
};
use crate::error::{Error, Result};

/// Sections whose keys the host knows.
pub(super) const BUILT_IN_SECTIONS: [&str; 3] = ["json_strategy", "sql_strategy", "dynamodb_strategy"];
const SECTION_SUFFIX: &str = "_strategy";
/// The file of an SQLite database that is not named.
const SQLITE_NAME: &str = "request_database.db";
const POSTGRESQL_HOST: &str = "localhost";
const POSTGRESQL_PORT: u16 = 5432;
const MIB: u64 = 1 << 20;

/// Resolves a configuration. `base_dir` is absolute.
pub(super) fn config(
    mut written: Value,
    base_dir: &Path,
    path: Option<PathBuf>,
    variables: Variables,
) -> Result<Config> {
    gather_sections(&mut written)?;
    let mut value = written.clone();
    environment::expand(&mut value, &mut Vec::new(), variables)?;
    schema::check_document(&mut value, &written)?;
    let sections = value.get("storage").and_then(Value::as_object).cloned().unwrap_or_default();
    let document = read(value)?;

    let collections = collections::resolve(&document.storage.collections)?;
    let plugins = plugins(&document.plugins, base_dir)?;
    let around = Surroundings {
        config: path.as_deref().map(settled),
        lock: settled(&plugins_lock(base_dir)),
        state: settled(&state_directory(base_dir)),
        plugins: settled(&default_plugins_directory(plugins.directory.as_deref())?),
        compiled: compile_cache_directory().as_deref().map(settled),
    };
    let names: Vec<&str> = collections.iter().map(|collection| collection.name.as_str()).collect();
    let resolver = Resolver { around: &around, collections: &names };
    let mut warnings = Vec::new();
    let (stores, implied) = resolver.stores(&document, &sections, &mut warnings)?;

    Ok(Config {
        migration: migration(&document.migration)?,
        plugins,
        path,
        base_dir: base_dir.to_path_buf(),
        default_store: document.storage.strategy,
        stores,
        implied,
        collections,
        warnings,
        written,
    })
}

/// Where migrations keep their state.
pub(super) fn state_directory(base_dir: &Path) -> PathBuf {
    base_dir.join(".larder")
}

/// Where plugins are pinned: beside the configuration, so that whoever can write the plugins directory cannot change both.
pub(super) fn plugins_lock(base_dir: &Path) -> PathBuf {
    base_dir.join("plugins.lock")
}

/// A short configuration may leave `storage` out: a section at the top of the file is read as one in `storage`.
fn gather_sections(written: &mut Value) -> Result<()> {
    let Some(members) = written.as_object_mut() else { return Ok(()) };
    for name in BUILT_IN_SECTIONS {
        let Some(section) = members.shift_remove(name) else { continue };
        let storage = members.entry("storage").or_insert_with(|| Map::new().into());
        // A `storage` that is no object is told by the schema.
        let Some(storage) = storage.as_object_mut() else { continue };
        if storage.contains_key(name) {
            return Err(Error::config(format!("`{name}` stands both at the top and in `storage`"))
                .hint("keep the one in `storage`"));
        }
        storage.insert(name.to_owned(), section);
    }
    Ok(())
}

/// Reads what the schema has found valid. Sections of other strategies are left out: their keys are their plugins'.
fn read(mut value: Value) -> Result<Document> {
    if let Some(storage) = value.get_mut("storage").and_then(Value::as_object_mut) {
        let is_known = |name: &str| !name.ends_with(SECTION_SUFFIX) || BUILT_IN_SECTIONS.contains(&name);
        storage.retain(|name, _| is_known(name));
        for store in storage.get_mut("stores").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
            if let Some(store) = store.as_object_mut() {
                store.retain(|name, _| is_known(name));
            }
        }
    }
    schema::make_integers(&mut value);
    // serde's message may quote a value, so it is not passed on.
    serde_json::from_value(value)
        .map_err(|_| Error::config("the configuration has a value that its schema allows and that cannot be read"))
}

fn migration(written: &written::Migration) -> Result<MigrationSettings> {
    Ok(MigrationSettings {
        batch_size: written.batch_size,
        create_backup: written.create_backup,
        backup_location: absolute(Path::new(&written.backup_location))?,
        validate_after_migration: written.validate_after_migration,
        cleanup_source: written.cleanup_source,
        parallel_workers: written.parallel_workers,
    })
}

fn mib(count: u32) -> usize {
    usize::try_from(u64::from(count) * MIB).unwrap_or(usize::MAX)
}

fn plugins(written: &written::Plugins, base_dir: &Path) -> Result<PluginSettings> {
    Ok(PluginSettings {
        directory: written.directory.as_ref().map(|directory| base_dir.join(directory)),
        memory_bytes_max: mib(written.memory_mb_max),
        memory_total_bytes_max: mib(written.memory_total_mb_max),
        component_bytes_max: u64::from(written.component_mb_max) * MIB,
        functions_max: written.functions_max.into(),
        call_timeout: Duration::from_secs_f64(written.call_timeout),
        cpu_timeout: Duration::from_secs_f64(written.cpu_timeout),
        transaction_timeout: Duration::from_secs_f64(written.transaction_timeout),
        scanned_entities_max: written.max_scanned_entities.into(),
        pages_max: written.pages_max.into(),
        call_entities_max: written.call_entities_max as usize,
        call_bytes_max: mib(written.call_mb_max),
        host_calls_max: written.host_calls_max.into(),
        handles_max: written.handles_max as usize,
        table_elements_max: written.table_elements_max as usize,
        core_instances_max: written.core_instances_max as usize,
        log_bytes_max: written.log_kb_max as usize * 1024,
        store_instances_max: written.store_instances_max as usize,
        traps_max: written.traps_max,
        traps_window: Duration::from_secs_f64(written.traps_window),
    })
}

/// What no store may touch.
struct Surroundings {
    config: Option<PathBuf>,
    lock: PathBuf,
    state: PathBuf,
    plugins: PathBuf,
    compiled: Option<PathBuf>,
}

struct Resolver<'a> {
    around: &'a Surroundings,
    collections: &'a [&'a str],
}

/// A store as written.
struct Place<'a> {
    name: &'a str,
    location: &'a str,
    strategy: &'a str,
    json: Option<&'a JsonStrategy>,
    sql: Option<&'a SqlStrategy>,
    dynamodb: Option<&'a DynamodbStrategy>,
    grants: Option<&'a written::Grants>,
    /// All that is written there, for the section as the plugin sees it.
    members: &'a Map<String, Value>,
}

impl Resolver<'_> {
    /// Every store that is described, the default one first, and those that are implied.
    fn stores(
        &self,
        document: &Document,
        members: &Map<String, Value>,
        warnings: &mut Vec<String>,
    ) -> Result<(Vec<Store>, Vec<Store>)> {
        let storage = &document.storage;
        let default = storage.strategy.as_str();
        let default_is_named = storage.stores.0.iter().any(|(name, _)| name == default);
        let at_top = |name, grants| Place {
            name,
            location: "storage",
            strategy: name,
            json: storage.json_strategy.as_ref(),
            sql: storage.sql_strategy.as_ref(),
            dynamodb: storage.dynamodb_strategy.as_ref(),
            grants,
            members,
        };

        let mut stores = Vec::new();
        if !default_is_named {
            stores.push(self.store(&at_top(default, storage.grants.as_ref()), warnings)?);
        } else if storage.grants.is_some() {
            return Err(Error::config("`storage.grants` has no store that it is for").hint(format!(
                "`storage.strategy` names the store `{default}`: write its grants in `storage.stores.{default}`"
            )));
        }
        for strategy in members.keys().filter_map(|name| name.strip_suffix(SECTION_SUFFIX)) {
            let section = format!("{strategy}{SECTION_SUFFIX}");
            if storage.stores.0.iter().any(|(name, _)| name == strategy) {
                return Err(Error::config(format!(
                    "`{strategy}` names two stores: `storage.{section}` and `{}`",
                    key_path(["storage", "stores", strategy])
                ))
                .hint("give the one in `storage.stores` another name"));
            }
            if strategy == default {
                continue;
            }
            if !BUILT_IN_SECTIONS.contains(&section.as_str()) {
                return Err(unknown_key(&["storage".to_owned()], &section, &BUILT_IN_SECTIONS).hint(format!(
                    "the section of a strategy `{strategy}` stands there where `storage.strategy` is `{strategy}`, \
                     otherwise in a store of its own in `storage.stores`"
                )));
            }
            stores.push(self.store(&at_top(strategy, None), warnings)?);
        }
        for (name, named) in &storage.stores.0 {
            if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err(Error::config(format!(
                    "`storage.stores` has a store {}, which is no name",
                    larder_model::json::quoted(name)
                ))
                .hint("a name is not empty and has no spaces"));
            }
            let location = key_path(["storage", "stores", name]);
            let members = members["stores"][name].as_object().cloned().unwrap_or_default();
            let own = format!("{}{SECTION_SUFFIX}", named.strategy);
            if let Some(other) = members.keys().find(|key| key.ends_with(SECTION_SUFFIX) && **key != own) {
                return Err(Error::config(format!(
                    "`{location}.{other}` is not the section of the strategy `{}`: did you mean `{own}`?",
                    named.strategy
                )));
            }
            let place = Place {
                name,
                location: &location,
                strategy: &named.strategy,
                json: named.json_strategy.as_ref(),
                sql: named.sql_strategy.as_ref(),
                dynamodb: named.dynamodb_strategy.as_ref(),
                grants: named.grants.as_ref(),
                members: &members,
            };
            let store = self.store(&place, warnings)?;
            if name == default { stores.insert(0, store) } else { stores.push(store) }
        }

        // Defaults that do not suit this place are nobody's mistake: such a store cannot be named.
        let nothing = Map::new();
        let implied = BUILT_IN_SECTIONS
            .iter()
            .filter_map(|section| section.strip_suffix(SECTION_SUFFIX))
            .filter(|strategy| !stores.iter().any(|store| store.name == *strategy))
            .filter_map(|strategy| {
                let place = Place { members: &nothing, ..at_top(strategy, None) };
                self.store(&place, &mut Vec::new()).ok()
            })
            .collect();
        Ok((stores, implied))
    }

    fn store(&self, place: &Place<'_>, warnings: &mut Vec<String>) -> Result<Store> {
        let section_name = format!("{}{SECTION_SUFFIX}", place.strategy);
        let at = format!("{}.{section_name}", place.location);
        let mut section = place.members.get(&section_name).and_then(Value::as_object).cloned().unwrap_or_default();
        if place.grants.is_some() && BUILT_IN_SECTIONS.contains(&section_name.as_str()) {
            return Err(Error::config(format!(
                "`{}.grants` is for other strategies than `{}`",
                place.location, place.strategy
            ))
            .hint(format!("what `{}` may borrow follows from `{at}`", place.strategy)));
        }

        if BUILT_IN_SECTIONS.contains(&section_name.as_str()) {
            section.values_mut().for_each(schema::make_integers);
        }
        let mut grants = Grants::default();
        match place.strategy {
            "json" => {
                let defaults = JsonStrategy::default();
                let json = place.json.unwrap_or(&defaults);
                self.check_filenames(&at, json)?;
                grants.files = Some(FilesGrant { directory: absolute(Path::new(&json.base_path))? });
                section.shift_remove("base_path");
            }
            "sql" => {
                let defaults = SqlStrategy::default();
                grants.sql = Some(sql_grant(&at, place.sql.unwrap_or(&defaults))?);
                section.retain(|key, _| key == "constraints");
            }
            "dynamodb" => {
                let defaults = DynamodbStrategy::default();
                let dynamodb = place.dynamodb.unwrap_or(&defaults);
                grants.dynamodb = Some(dynamodb_grant(&at, dynamodb, warnings)?);
                section.retain(|key, _| ["consistent_reads", "load_in_transactions"].contains(&key.as_str()));
            }
            _ => {
                if let Some(files) = place.grants.and_then(|grants| grants.files.as_ref()) {
                    grants.files = Some(FilesGrant { directory: absolute(Path::new(&files.directory))? });
                }
                if let Some(sql) = place.grants.and_then(|grants| grants.sql.as_ref()) {
                    grants.sql = Some(sql_grant(&format!("{}.grants.sql", place.location), sql)?);
                }
                if let Some(dynamodb) = place.grants.and_then(|grants| grants.dynamodb.as_ref()) {
                    let at = format!("{}.grants.dynamodb", place.location);
                    grants.dynamodb = Some(dynamodb_grant(&at, dynamodb, warnings)?);
                }
                if let Some(tcp) = place.grants.and_then(|grants| grants.tcp.as_ref()) {
                    grants.tcp = Some(network::tcp_grant(&format!("{}.grants.tcp", place.location), tcp)?);
                }
                if let Some(http) = place.grants.and_then(|grants| grants.http.as_ref()) {
                    grants.http = Some(network::http_grant(&format!("{}.grants.http", place.location), http)?);
                }
            }
        }

        let store = Store {
            name: place.name.to_owned(),
            strategy: place.strategy.to_owned(),
            section,
            grants,
            location: place.location.to_owned(),
        };
        if let Some(config) = &self.around.config {
            check_outside(&store, "the configuration", config)?;
        }
        check_outside(&store, "the pins of plugins", &self.around.lock)?;
        check_apart(&store, "the state of migrations", &self.around.state)?;
        check_apart(&store, "plugins", &self.around.plugins)?;
        if let Some(compiled) = &self.around.compiled {
            check_apart(&store, "compiled plugins", compiled)?;
        }
        Ok(store)
    }

    /// Names of documents: inside the directory, one a collection, each its own.
    fn check_filenames(&self, at: &str, json: &JsonStrategy) -> Result<()> {
        let Some(filenames) = &json.filenames else { return Ok(()) };
        let split = filenames.split_files.iter().map(|(collection, file)| (key_path([collection]), file));
        let single = filenames.single_file.iter().map(|file| ("single_file".to_owned(), file));
        for (key, file) in single.chain(split) {
            let is_inside = !file.is_empty()
                && !file.contains('\0')
                && Path::new(file).components().all(|component| matches!(component, Component::Normal(_)));
            if !is_inside {
                return Err(Error::config(format!(
                    "`{at}.filenames` leads out of `base_path` with its file for `{key}`"
                ))
                .hint("a name is relative to `base_path`, without `..`"));
            }
        }
        let mut seen: Vec<&String> = Vec::new();
        for (collection, file) in &filenames.split_files {
            let path = ["filenames".to_owned(), "split_files".to_owned()];
            if !self.collections.contains(&collection.as_str()) {
                let mut full = vec![at.to_owned()];
                full.extend(path);
                let near = schema::nearest_first(collection, self.collections);
                return Err(Error::config(format!(
                    "`{}.{}` names no collection: did you mean `{}`?",
                    full.join("."),
                    key_path([collection]),
                    near[0]
                ))
                .hint("more collections are declared in `storage.collections`"));
            }
            if seen.contains(&file) {
                return Err(Error::config(format!("`{at}.filenames.split_files` gives one file to two collections")));
            }
            seen.push(file);
        }
        Ok(())
    }
}

/// The database that a section or a grant describes.
fn sql_grant(at: &str, sql: &SqlStrategy) -> Result<SqlGrant> {
    let pool = Pool {
        size: sql.pool_size,
        max_overflow: sql.max_overflow,
        timeout: Duration::from_secs_f64(sql.timeout),
        pool_timeout: Duration::from_secs_f64(sql.pool_timeout),
        pool_recycle: (sql.pool_recycle > 0.0).then(|| Duration::from_secs_f64(sql.pool_recycle)),
        query_cache: sql.enable_query_cache,
    };
    match sql.database {
        DatabaseType::Sqlite => {
            let meaningless = [
                ("host", !sql.host.is_empty()),
                ("port", sql.port != 0),
                ("username", !sql.username.is_empty()),
                ("password", !sql.password.is_empty()),
                ("ssl_root_cert", !sql.ssl_root_cert.is_empty()),
                ("allow_superuser", sql.allow_superuser),
            ];
            if let Some((key, _)) = meaningless.into_iter().find(|(_, is_set)| *is_set) {
                return Err(Error::config(format!("`{at}.{key}` means nothing to SQLite, which is a file"))
                    .hint(format!("leave it empty, or set `{at}.type` to `postgresql`")));
            }
            let name = sql.name.as_deref().unwrap_or(SQLITE_NAME);
            // These are names that SQLite does not take for a file.
            if name.is_empty() || name.starts_with(':') || name.starts_with("file:") || name.contains('\0') {
                return Err(Error::config(format!("`{at}.name` must be the path of a file")));
            }
            Ok(SqlGrant::Sqlite { path: absolute(Path::new(name))?, pool })
        }
        DatabaseType::Postgresql => {
            let name = sql.name.as_deref().unwrap_or_default();
            for (key, value, what) in [("name", name, "database"), ("username", &sql.username, "user")] {
                if value.is_empty() {
                    return Err(Error::config(format!("`{at}.{key}` is missing: the {what} of PostgreSQL")));
                }
            }
            Ok(SqlGrant::Postgresql(Server {
                host: if sql.host.is_empty() { POSTGRESQL_HOST.to_owned() } else { sql.host.clone() },
                port: if sql.port == 0 { POSTGRESQL_PORT } else { sql.port },
                name: name.to_owned(),
                username: sql.username.clone(),
                password: Secret::new(&sql.password),
                tls_mode: match sql.ssl_mode {
                    SslMode::Disable => TlsMode::Disable,
                    SslMode::Allow => TlsMode::Allow,
                    SslMode::Prefer => TlsMode::Prefer,
                    SslMode::Require => TlsMode::Require,
                    SslMode::VerifyCa => TlsMode::VerifyCa,
                    SslMode::VerifyFull => TlsMode::VerifyFull,
                },
                root_certificate: match sql.ssl_root_cert.as_str() {
                    "" => None,
                    file => Some(absolute(Path::new(file))?),
                },
                allow_superuser: sql.allow_superuser,
                pool,
            }))
        }
    }
}

/// The tables that a section or a grant describes.
fn dynamodb_grant(at: &str, dynamodb: &DynamodbStrategy, warnings: &mut Vec<String>) -> Result<DynamodbGrant> {
    let bounds = &dynamodb.auto_scaling.bounds;
    for (kind, least, most) in [
        ("read", bounds.min_read_capacity, bounds.max_read_capacity),
        ("write", bounds.min_write_capacity, bounds.max_write_capacity),
    ] {
        if least > most {
            return Err(Error::config(format!(
                "`{at}.auto_scaling.min_{kind}_capacity` is more than `max_{kind}_capacity`"
            )));
        }
    }
    if dynamodb.enable_dax {
        warnings.push(format!("`{at}.enable_dax`: there is no DAX client, so reads go to DynamoDB"));
    }
    let scales = dynamodb.auto_scaling.enabled;
    let is_provisioned = match dynamodb.billing_mode {
        Some(mode) => mode == BillingMode::Provisioned,
        None => scales,
    };
    if scales && !is_provisioned {
        warnings.push(format!("`{at}.auto_scaling`: there is nothing to scale where tables are paid by request"));
    }
    Ok(DynamodbGrant {
        region: dynamodb.region.clone(),
        profile: dynamodb.profile.clone(),
        endpoint_url: dynamodb.endpoint_url.clone(),
        table_prefix: dynamodb.table_prefix.clone(),
        provisioned: is_provisioned
            .then_some(Provisioned { read: dynamodb.read_capacity, write: dynamodb.write_capacity }),
        auto_scaling: (is_provisioned && scales).then_some(AutoScaling {
            read_min: bounds.min_read_capacity,
            read_max: bounds.max_read_capacity,
            write_min: bounds.min_write_capacity,
            write_max: bounds.max_write_capacity,
            target_utilization: bounds.target_utilization,
        }),
    })
}

/// Refuses a grant that reaches the file `path`.
fn check_outside(store: &Store, what: &str, path: &Path) -> Result<()> {
    if let Some(files) = &store.grants.files
        && path.starts_with(settled(&files.directory))
    {
        return Err(reaches(store, &files.directory, what));
    }
    if let Some(SqlGrant::Sqlite { path: database, .. }) = &store.grants.sql
        && settled(database) == path
    {
        return Err(reaches(store, database, what));
    }
    Ok(())
}

/// Refuses a grant that reaches the directory `path` or anything in it.
pub(super) fn check_apart(store: &Store, what: &str, path: &Path) -> Result<()> {
    let path = settled(path);
    check_outside(store, what, &path)?;
    let granted = match (&store.grants.files, &store.grants.sql) {
        (Some(files), _) if settled(&files.directory).starts_with(&path) => &files.directory,
        (_, Some(SqlGrant::Sqlite { path: database, .. })) if settled(database).starts_with(&path) => database,
        _ => return Ok(()),
    };
    Err(reaches(store, granted, what))
}

fn reaches(store: &Store, granted: &Path, what: &str) -> Error {
    Error::config(format!("the store `{}` would be lent {what} with `{}`", store.name, granted.display()))
        .hint("give its data a folder of its own")
}

/// The path with its links followed, as far as it exists: what is compared to tell whether one place holds another.
pub(super) fn settled(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut known = path;
    loop {
        if let Ok(real) = known.canonicalize() {
            return rest.iter().rev().fold(real, |path, name: &Component<'_>| match name {
                Component::ParentDir => path.parent().unwrap_or(&path).to_path_buf(),
                name => path.join(name),
            });
        }
        let (Some(parent), Some(last)) = (known.parent(), known.components().next_back()) else {
            return path.to_path_buf();
        };
        rest.push(last);
        known = parent;
    }
}
