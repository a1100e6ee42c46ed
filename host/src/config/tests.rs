//! What the configuration promises: every form of every key works, mistakes are named by their key, nothing lends
//! more than it should, and no secret is shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_model::{Collection, FieldType};
use serde_json::{Value, json};

use super::*;

/// A configuration whose only variable is a password.
fn resolved(value: Value) -> Result<Config> {
    with_variables(value, &[("DB_PASSWORD", "hunter2")])
}

fn with_variables(value: Value, variables: &[(&str, &str)]) -> Result<Config> {
    let variables = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
    resolve::config(value, Path::new("/larder-tests/etc"), None, &variables)
}

/// The message of the error that `value` must be.
fn refusal(value: Value) -> String {
    refusal_error(value).message
}

fn refusal_error(value: Value) -> Error {
    match resolved(value.clone()) {
        Ok(_) => panic!("accepted: {value}"),
        Err(error) => {
            assert_eq!(error.kind, crate::error::Kind::Config, "{error:?}");
            error
        }
    }
}

fn here(path: &str) -> PathBuf {
    std::env::current_dir().unwrap().join(path)
}

/// A folder of this test's own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("larder-config-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path.canonicalize().unwrap())
    }

    fn write(&self, name: &str, value: &Value) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, value.to_string()).unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

// What works.

#[test]
fn an_empty_configuration_has_every_default() {
    let config = resolved(json!({})).unwrap();
    let store = config.store(None).unwrap();
    assert_eq!((store.name.as_str(), store.strategy.as_str(), store.location.as_str()), ("json", "json", "storage"));
    assert_eq!(store.grants, Grants { files: Some(FilesGrant { directory: here("data") }), ..Grants::default() });
    assert!(store.section.is_empty());
    assert_eq!(config.stores().len(), 1);
    assert_eq!(
        config.migration,
        MigrationSettings {
            batch_size: 1000,
            create_backup: true,
            backup_location: here("backups/"),
            validate_after_migration: true,
            cleanup_source: false,
            parallel_workers: 4,
        }
    );
    assert_eq!(config.plugins.memory_bytes_max, 1 << 30);
    assert_eq!(config.plugins.call_timeout, Duration::from_secs(30));
    assert_eq!(config.plugins.scanned_entities_max, 1_000_000);
    assert_eq!(config.state_directory(), Path::new("/larder-tests/etc/.larder"));
}

#[test]
fn a_json_store_in_one_file_works() {
    let config = resolved(json!({ "storage": { "strategy": "json", "json_strategy": {
        "storage_type": "single_file", "base_path": "data", "filenames": { "single_file": "request_database.json" }
    }}}));
    let store = config.unwrap().store(None).unwrap();
    assert_eq!(store.grants.files.unwrap().directory, here("data"));
    assert_eq!(
        Value::Object(store.section),
        json!({ "storage_type": "single_file", "filenames": { "single_file": "request_database.json" } })
    );
}

#[test]
fn a_json_store_in_split_files_works() {
    let filenames = json!({ "split_files": {
        "templates": "templates.json", "requests": "requests.json", "machines": "machines.json"
    }});
    let config = resolved(json!({ "storage": { "strategy": "json", "json_strategy": {
        "storage_type": "split_files", "base_path": "data", "filenames": filenames
    }}}));
    let section = config.unwrap().store(None).unwrap().section;
    assert_eq!(Value::Object(section), json!({ "storage_type": "split_files", "filenames": filenames }));
}

#[test]
fn an_sqlite_store_works() {
    let config = resolved(json!({ "storage": { "strategy": "sql", "sql_strategy": {
        "type": "sqlite", "name": "request_database.db", "host": "", "port": 0,
        "pool_size": 5, "max_overflow": 10, "timeout": 30
    }}}));
    let store = config.unwrap().store(None).unwrap();
    assert!(store.section.is_empty(), "what the connection is made from is not the plugin's: {store:?}");
    let pool = Pool {
        size: 5,
        max_overflow: 10,
        timeout: Duration::from_secs(30),
        pool_timeout: Duration::from_secs(30),
        pool_recycle: Some(Duration::from_secs(3600)),
        query_cache: true,
    };
    assert_eq!(store.grants.sql, Some(SqlGrant::Sqlite { path: here("request_database.db"), pool }));
    assert_eq!(store.grants.files, None);
}

fn postgresql() -> Value {
    json!({ "storage": { "strategy": "sql", "sql_strategy": {
        "type": "postgresql", "host": "localhost", "port": 5432, "name": "hostfactory",
        "username": "hostfactory_user", "password": "${DB_PASSWORD}",
        "pool_size": 20, "max_overflow": 30, "timeout": 60
    }}})
}

#[test]
fn a_postgresql_store_works() {
    let store = resolved(postgresql()).unwrap().store(None).unwrap();
    assert!(store.section.is_empty());
    let Some(SqlGrant::Postgresql(server)) = store.grants.sql else { panic!("{store:?}") };
    assert_eq!(server.to_string(), "localhost:5432/hostfactory");
    assert_eq!((server.username.as_str(), server.password.expose()), ("hostfactory_user", "hunter2"));
    assert_eq!((server.tls_mode, server.root_certificate, server.allow_superuser), (TlsMode::Prefer, None, false));
    let pool = server.pool;
    assert_eq!((pool.size, pool.max_overflow, pool.timeout), (20, 30, Duration::from_secs(60)));
}

#[test]
fn a_dynamodb_store_is_accepted_in_both_forms_of_auto_scaling() {
    let section = json!({
        "region": "us-east-1", "profile": "production", "table_prefix": "hostfactory",
        "read_capacity": 5, "write_capacity": 5, "consistent_reads": true
    });
    let object = json!({
        "enabled": true, "min_read_capacity": 1, "max_read_capacity": 100,
        "min_write_capacity": 1, "max_write_capacity": 100, "target_utilization": 70
    });
    let scaled = AutoScaling { read_min: 1, read_max: 100, write_min: 1, write_max: 100, target_utilization: 70 };
    let units = Some(Provisioned { read: 5, write: 5 });
    for (auto_scaling, billing_mode, provisioned, expected) in [
        (json!(true), None, units, Some(&scaled)),
        (object, None, units, Some(&scaled)),
        (json!(false), None, None, None),
        (json!(false), Some("PROVISIONED"), units, None),
        (json!(true), Some("PAY_PER_REQUEST"), None, None),
    ] {
        let mut section = section.clone();
        section["auto_scaling"] = auto_scaling;
        if let Some(mode) = billing_mode {
            section["billing_mode"] = mode.into();
        }
        let config = resolved(json!({ "storage": { "strategy": "dynamodb", "dynamodb_strategy": section } })).unwrap();
        let store = config.store(None).unwrap();
        let grant = DynamodbGrant {
            region: Some("us-east-1".to_owned()),
            profile: Some("production".to_owned()),
            endpoint_url: None,
            table_prefix: "hostfactory".to_owned(),
            provisioned,
            auto_scaling: expected.cloned(),
        };
        assert_eq!(store.grants, Grants { dynamodb: Some(grant), ..Grants::default() });
        assert_eq!(Value::Object(store.section), json!({ "consistent_reads": true }));
        assert_eq!(config.warnings().is_empty(), billing_mode != Some("PAY_PER_REQUEST"));
    }
}

#[test]
fn another_strategy_can_be_lent_tables() {
    let config = resolved(json!({ "storage": { "strategy": "kv", "kv_strategy": {}, "grants": {
        "dynamodb": { "endpoint_url": "http://localhost:8000", "table_prefix": "kv" }
    }}}));
    let grant = config.unwrap().store(None).unwrap().grants.dynamodb.unwrap();
    assert_eq!((grant.table_prefix.as_str(), grant.provisioned), ("kv", None));
    let unknown = json!({ "storage": { "strategy": "kv", "kv_strategy": {}, "grants": {
        "dynamodb": { "consistent_reads": true }
    }}});
    assert!(refusal(unknown).contains("storage.grants.dynamodb.consistent_reads"));
}

#[test]
fn another_strategy_can_be_lent_hosts_and_origins() {
    let grants = json!({
        "tcp": { "allow": ["Cache.Example.org:6379", "10.0.0.5:6379"], "private": true },
        "http": { "allow": ["https://api.example.org", "http://[::1]:8080"] }
    });
    let config = resolved(json!({ "storage": { "strategy": "kv", "grants": grants } })).unwrap();
    let grants = config.store(None).unwrap().grants;
    let places: Vec<String> =
        grants.places().map(|(capability, place)| format!("{} {place}", capability.name())).collect();
    assert_eq!(
        places,
        ["tcp cache.example.org:6379", "tcp 10.0.0.5:6379", "http https://api.example.org", "http http://[::1]:8080"]
    );
    let (tcp, http) = (grants.tcp.unwrap(), grants.http.unwrap());
    assert_eq!((tcp.private, http.private, http.origins[0].endpoint.port), (true, false, 443));
    // What is shown says the same.
    let shown = resolved(config.show()).unwrap().store(None).unwrap().grants;
    assert_eq!((shown.tcp, shown.http), (Some(tcp), Some(http)));
}

#[test]
fn stores_that_share_a_host_are_one_place_where_their_sections_are_the_same() {
    let store = |grants: Value, section: Value| {
        let config = resolved(json!({ "storage": { "strategy": "kv", "kv_strategy": section, "grants": grants } }));
        config.unwrap().store(None).unwrap()
    };
    let one = store(json!({ "tcp": { "allow": ["a.example.org:1", "b.example.org:1"] } }), json!({ "bucket": "x" }));
    let same = store(json!({ "tcp": { "allow": ["B.example.org:1"] } }), json!({ "bucket": "x" }));
    let http = store(json!({ "http": { "allow": ["http://b.example.org:1"] } }), json!({ "bucket": "x" }));
    let bucket = store(json!({ "tcp": { "allow": ["b.example.org:1"] } }), json!({ "bucket": "y" }));
    let port = store(json!({ "tcp": { "allow": ["b.example.org:2"] } }), json!({ "bucket": "x" }));
    let nothing = store(json!({}), json!({ "bucket": "x" }));
    assert!(one.is_same_place(&same) && one.is_same_place(&http) && one.grants.overlap(&http.grants));
    assert!(!one.is_same_place(&bucket) && one.grants.overlap(&bucket.grants));
    for other in [port, nothing] {
        assert!(!one.is_same_place(&other) && !other.is_same_place(&one) && !one.grants.overlap(&other.grants));
    }
}

#[test]
fn a_section_can_stand_at_the_top() {
    let config = resolved(json!({ "json_strategy": {
        "enable_compression": true, "cache_size": 1000, "write_buffer_size": 64000, "sync_writes": false
    }}));
    assert_eq!(
        Value::Object(config.unwrap().store(None).unwrap().section),
        json!({ "enable_compression": true, "cache_size": 1000, "write_buffer_size": 64000, "sync_writes": false })
    );
    let config = resolved(json!({ "sql_strategy": {
        "pool_size": 20, "max_overflow": 30, "pool_timeout": 30, "pool_recycle": 3600, "enable_query_cache": true
    }}));
    let Some(SqlGrant::Sqlite { pool, .. }) = config.unwrap().store(Some("sql")).unwrap().grants.sql else { panic!() };
    assert_eq!((pool.size, pool.max_overflow), (20, 30));
    let config = resolved(json!({ "dynamodb_strategy": {
        "read_capacity": 10, "write_capacity": 10, "auto_scaling": true, "enable_dax": true, "consistent_reads": false
    }}))
    .unwrap();
    assert_eq!(config.stores().len(), 2);
    assert!(config.warnings()[0].contains("enable_dax"), "{:?}", config.warnings());
    resolved(json!({ "dynamodb_strategy": { "auto_scaling": {
        "enabled": true, "min_read_capacity": 1, "max_read_capacity": 100,
        "min_write_capacity": 1, "max_write_capacity": 100, "target_utilization": 70
    }}}))
    .unwrap();
    let both = json!({ "json_strategy": {}, "storage": { "json_strategy": {} } });
    assert_eq!(refusal(both), "`json_strategy` stands both at the top and in `storage`");
}

#[test]
fn migration_settings_work_with_a_folder_and_with_a_file() {
    let migration = json!({
        "batch_size": 100, "create_backup": true, "backup_location": "backups/",
        "validate_after_migration": true, "cleanup_source": false, "parallel_workers": 4
    });
    let settings = resolved(json!({ "migration": migration })).unwrap().migration;
    assert_eq!(settings.backup_location, here("backups/"));
    let mut migration = migration;
    migration["backup_location"] = "backups/migration_backup_20250630.json".into();
    migration["batch_size"] = 50.into();
    let settings = resolved(json!({ "migration": migration })).unwrap().migration;
    assert_eq!(settings.backup_location, here("backups/migration_backup_20250630.json"));
    assert_eq!(settings.batch_size, 50);
}

// Mistakes.

#[test]
fn an_unknown_key_is_told_with_its_path_and_the_nearest_key() {
    let error = refusal_error(json!({ "storage": { "sql_strategy": { "pool_sise": 5 } } }));
    assert_eq!(error.message, "`storage.sql_strategy.pool_sise` is no known key: did you mean `pool_size`?");
    assert!(error.hint.unwrap().starts_with("the keys there are `pool_size`, "));
    for (value, expected) in [
        (json!({ "storag": {} }), "`storag` is no known key: did you mean `storage`?"),
        (
            json!({ "migration": { "batchsize": 1 } }),
            "`migration.batchsize` is no known key: did you mean `batch_size`?",
        ),
        (json!({ "batch_size": 1 }), "`batch_size` is no known key: did you mean `migration.batch_size`?"),
        (
            json!({ "storage": { "json_stratgy": {} } }),
            "`storage.json_stratgy` is no known key: did you mean `json_strategy`?",
        ),
        // A section of some other strategy by its form.
        (
            json!({ "storage": { "jsn_strategy": {} } }),
            "`storage.jsn_strategy` is no known key: did you mean `json_strategy`?",
        ),
        (
            json!({ "storage": { "stores": { "a": { "strategy": "sql", "sql_strategy": { "nam": "x" } } } } }),
            "`storage.stores.a.sql_strategy.nam` is no known key: did you mean `name`?",
        ),
        (
            json!({ "dynamodb_strategy": { "auto_scaling": { "enable": true } } }),
            "`storage.dynamodb_strategy.auto_scaling.enable` is no known key: did you mean `enabled`?",
        ),
        (
            json!({ "storage": { "collections": { "hosts": { "key": "id", "fields": { "a": { "typ": "text" } } } } } }),
            "there are 2 mistakes",
        ),
    ] {
        assert_eq!(refusal(value), expected);
    }
}

#[test]
fn a_value_that_cannot_be_is_told_with_its_key_and_its_rule() {
    let sql = |section: Value| json!({ "storage": { "strategy": "sql", "sql_strategy": section } });
    let json_section = |section: Value| json!({ "storage": { "json_strategy": section } });
    let dynamodb = |section: Value| json!({ "storage": { "dynamodb_strategy": section } });
    for (value, expected) in [
        (json!([]), "`the configuration` must be an object, not an array"),
        (json!({ "storage": [] }), "`storage` must be an object, not an array"),
        (json!({ "storage": { "strategy": "" } }), "`storage.strategy` must not be empty"),
        (sql(json!({ "type": "postgres" })), "`storage.sql_strategy.type` must be `postgresql` or `sqlite`"),
        (sql(json!({ "pool_size": 0 })), "`storage.sql_strategy.pool_size` must be at least 1"),
        (sql(json!({ "pool_size": "5" })), "`storage.sql_strategy.pool_size` must be an integer, not a string"),
        (sql(json!({ "pool_size": 1.5 })), "`storage.sql_strategy.pool_size` must be an integer, not a number"),
        (sql(json!({ "pool_size": null })), "`storage.sql_strategy.pool_size` must be an integer, not null"),
        (sql(json!({ "port": 65536 })), "`storage.sql_strategy.port` must be at most 65535"),
        (sql(json!({ "port": -1 })), "`storage.sql_strategy.port` must be at least 0"),
        (sql(json!({ "timeout": 0 })), "`storage.sql_strategy.timeout` must be more than 0"),
        (sql(json!({ "timeout": 1e300 })), "`storage.sql_strategy.timeout` must be at most 86400"),
        (sql(json!({ "pool_timeout": -1 })), "`storage.sql_strategy.pool_timeout` must be at least 0"),
        (sql(json!({ "name": "" })), "`storage.sql_strategy.name` must be the path of a file"),
        (sql(json!({ "name": ":memory:" })), "`storage.sql_strategy.name` must be the path of a file"),
        (sql(json!({ "host": "db" })), "`storage.sql_strategy.host` means nothing to SQLite, which is a file"),
        (sql(json!({ "type": "postgresql" })), "`storage.sql_strategy.name` is missing: the database of PostgreSQL"),
        (
            sql(json!({ "type": "postgresql", "name": "hostfactory" })),
            "`storage.sql_strategy.username` is missing: the user of PostgreSQL",
        ),
        (sql(json!({ "constraints": "lax" })), "`storage.sql_strategy.constraints` must be `relaxed` or `strict`"),
        (json_section(json!({ "base_path": "" })), "`storage.json_strategy.base_path` must not be empty"),
        (json_section(json!({ "cache_size": -1 })), "`storage.json_strategy.cache_size` must be at least 0"),
        (
            json_section(json!({ "filenames": { "single_file": "../x.json" } })),
            "`storage.json_strategy.filenames` leads out of `base_path` with its file for `single_file`",
        ),
        (
            json_section(json!({ "filenames": { "split_files": { "machine": "m.json" } } })),
            "`storage.json_strategy.filenames.split_files.machine` names no collection: did you mean `machines`?",
        ),
        (
            json_section(json!({ "filenames": { "split_files": { "machines": "m.json", "requests": "m.json" } } })),
            "`storage.json_strategy.filenames.split_files` gives one file to two collections",
        ),
        (
            dynamodb(json!({ "auto_scaling": { "min_read_capacity": 200 } })),
            "`storage.dynamodb_strategy.auto_scaling.min_read_capacity` is more than `max_read_capacity`",
        ),
        (
            dynamodb(json!({ "auto_scaling": "on" })),
            "`storage.dynamodb_strategy.auto_scaling` must be a boolean or an object, not a string",
        ),
        (dynamodb(json!({ "read_capacity": 0 })), "`storage.dynamodb_strategy.read_capacity` must be at least 1"),
        (json!({ "migration": { "batch_size": 0 } }), "`migration.batch_size` must be at least 1"),
        (json!({ "migration": { "parallel_workers": 65 } }), "`migration.parallel_workers` must be at most 64"),
        (json!({ "plugins": { "memory_mb_max": 1 } }), "`plugins.memory_mb_max` must be at least 16"),
        (json!({ "storage": { "stores": { "a": {} } } }), "`storage.stores.a.strategy` is missing"),
        (json!({ "storage": { "grants": { "files": {} } } }), "`storage.grants.files.directory` is missing"),
    ] {
        assert_eq!(refusal(value), expected);
    }
}

#[test]
fn several_mistakes_are_told_together() {
    let error = refusal_error(json!({ "migration": { "batch_size": 0, "parallel_workers": 0, "workers": 2 } }));
    assert_eq!(error.message, "there are 3 mistakes");
    assert_eq!(error.causes.len(), 3);
}

#[test]
fn numbers_are_read_whatever_their_spelling_and_never_overflow() {
    for (text, size) in
        [("5", Some(5)), ("5.0", Some(5)), ("5e0", Some(5)), ("1e400", None), ("1e-400", None), ("-1e999999999", None)]
    {
        let text = format!("{{\"storage\": {{\"strategy\": \"sql\", \"sql_strategy\": {{\"pool_size\": {text}}}}}}}");
        let config = Config::from_text(&text, Path::new("/larder-tests/etc"));
        match (config, size) {
            (Ok(config), Some(size)) => {
                let Some(SqlGrant::Sqlite { pool, .. }) = config.store(None).unwrap().grants.sql else { panic!() };
                assert_eq!(pool.size, size);
            }
            (Err(error), None) => assert!(error.message.contains("pool_size"), "{error:?}"),
            (config, _) => panic!("{text}: {config:?}"),
        }
    }
    let text = format!("{{\"migration\": {{\"batch_size\": 1{}}}}}", "0".repeat(40));
    assert_eq!(
        Config::from_text(&text, Path::new("/larder-tests/etc")).unwrap_err().message,
        "`migration.batch_size` must be at most 100000"
    );
    let store = resolved(json!({ "json_strategy": { "cache_size": 1000.0 } })).unwrap().store(None).unwrap();
    assert_eq!(store.section["cache_size"].to_string(), "1000");
}

#[test]
fn text_that_is_no_json_is_told_with_its_place() {
    let error =
        Config::from_text("{\"storage\": {\n  \"strategy\": json}}", Path::new("/larder-tests/etc")).unwrap_err();
    assert!(error.message.contains("line 2"), "{error:?}");
    let twice = "{\"storage\": {\"strategy\": \"json\", \"strategy\": \"sql\"}}";
    let error = Config::from_text(twice, Path::new("/larder-tests/etc")).unwrap_err();
    assert!(error.message.contains("strategy"), "{error:?}");
}

// The environment.

#[test]
fn variables_are_expanded_in_strings() {
    for (text, expected) in [
        ("${A}", "a"),
        ("x${A}y${B}", "xay"),
        ("${NONE:-d}", "d"),
        ("${NONE:-}", ""),
        ("${B:-empty counts as unset}", "empty counts as unset"),
        ("${A:-d}", "a"),
        ("$${A}", "${A}"),
        ("$A {A} $", "$A {A} $"),
        ("${NEST}", "${A}"),
    ] {
        let value = json!({ "storage": { "strategy": "custom", "custom_strategy": { "text": text } } });
        let config = with_variables(value, &[("A", "a"), ("B", ""), ("NEST", "${A}")]).unwrap();
        assert_eq!(config.store(None).unwrap().section["text"], expected, "{text}");
    }
}

#[test]
fn a_number_can_come_from_a_variable() {
    let value =
        json!({ "storage": { "strategy": "sql", "sql_strategy": { "pool_size": "${POOL:-7}", "timeout": "${T}" } } });
    let store = with_variables(value.clone(), &[("T", "1.5")]).unwrap().store(None).unwrap();
    let Some(SqlGrant::Sqlite { pool, .. }) = store.grants.sql else { panic!() };
    assert_eq!((pool.size, pool.timeout), (7, Duration::from_millis(1500)));
    let error = with_variables(value, &[("T", "soon")]).unwrap_err();
    assert_eq!(error.message, "`storage.sql_strategy.timeout` must be a number, not a string");
}

#[test]
fn a_variable_that_is_not_set_is_told_with_its_key() {
    let error = with_variables(postgresql(), &[]).unwrap_err();
    assert_eq!(
        error.message,
        "`storage.sql_strategy.password` needs the environment variable DB_PASSWORD, which is not set"
    );
    for broken in ["${", "${}", "${A", "${A B}", "${1}", "${A:d}"] {
        let error = refusal(json!({ "storage": { "strategy": broken } }));
        assert!(error.starts_with("`storage.strategy` has a `${`"), "{broken}: {error}");
    }
}

// Secrets.

#[test]
fn no_secret_is_shown() {
    let mut value = postgresql();
    value["storage"]["stores"] = json!({
        "plain": { "strategy": "sql", "sql_strategy": {
            "type": "postgresql", "name": "d", "username": "u", "password": "hunter2"
        }},
        "default": { "strategy": "sql", "sql_strategy": {
            "type": "postgresql", "name": "d", "username": "u", "password": "${NONE:-hunter2}"
        }},
        "other": { "strategy": "kv", "kv_strategy": {
            "ApiToken": "hunter2", "nested": { "client_secret": ["hunter2", 4711] }, "region": "${REGION:-eu}"
        }, "grants": { "sql": { "type": "postgresql", "name": "d", "username": "u", "password": "x${DB_PASSWORD}hunter2" } } },
    });
    let config = resolved(value).unwrap();
    let shown = config.show();
    let everything = format!("{shown} {config:?} {:?}", config.stores());
    assert!(!everything.contains("hunter2") && !everything.contains("4711"), "{everything}");
    assert_eq!(shown["storage"]["sql_strategy"]["password"], "${DB_PASSWORD}");
    let stores = &shown["storage"]["stores"];
    assert_eq!(stores["plain"]["sql_strategy"]["password"], "***");
    assert_eq!(stores["default"]["sql_strategy"]["password"], "${NONE:-***}");
    assert_eq!(stores["other"]["grants"]["sql"]["password"], "***${DB_PASSWORD}***");
    assert_eq!(stores["other"]["kv_strategy"]["ApiToken"], "***");
    assert_eq!(stores["other"]["kv_strategy"]["nested"]["client_secret"], json!(["***", "***"]));
    assert_eq!(stores["other"]["kv_strategy"]["region"], "${REGION:-eu}");
    // The plugin gets what it needs.
    assert_eq!(config.store(Some("other")).unwrap().section["ApiToken"], "hunter2");
}

#[test]
fn no_message_quotes_a_value() {
    for value in [
        json!({ "storage": { "sql_strategy": { "password": ["hunter2"] } } }),
        json!({ "storage": { "sql_strategy": { "password": "hunter2" } } }),
        json!({ "storage": { "sql_strategy": { "type": "hunter2" } } }),
        json!({ "storage": { "sql_strategy": { "port": "${DB_PASSWORD}" } } }),
        json!({ "storage": { "dynamodb_strategy": { "endpoint_url": "http://user:hunter2@host" } } }),
    ] {
        let error = format!("{:?}", refusal_error(value));
        assert!(!error.contains("hunter2"), "{error}");
    }
    let schema = json!({ "properties": { "a": { "const": "b" }, "n": { "type": "integer" } } }).to_string();
    let error = check_section("kv", &json!({ "a": "hunter2", "n": "hunter2" }), &schema).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn what_is_shown_is_a_configuration_that_means_the_same() {
    let value = json!({
        "storage": {
            "strategy": "archive",
            "stores": { "archive": { "strategy": "sql" } },
            "collections": { "hosts": { "key": "hostId", "updated_at": null, "fields": { "site": { "type": "text" } } } },
        },
        "plugins": { "directory": "p" },
    });
    let config = resolved(value).unwrap();
    let again = resolved(config.show()).unwrap();
    assert_eq!(again.collections(), config.collections());
    assert_eq!((&again.migration, &again.plugins), (&config.migration, &config.plugins));
    assert_eq!(again.store(None).unwrap().grants, config.store(None).unwrap().grants);
    assert_eq!(again.show(), config.show());
    assert_eq!(config.show()["storage"]["stores"]["archive"]["sql_strategy"]["pool_size"], 5);
    assert_eq!(config.show()["migration"]["batch_size"], 1000);
}

// Stores and grants.

#[test]
fn a_store_is_named_by_its_name_or_its_strategy() {
    let config = resolved(json!({ "storage": {
        "strategy": "sql",
        "json_strategy": { "base_path": "/srv/json" },
        "sql_strategy": { "name": "/srv/top.db" },
        "stores": { "archive": { "strategy": "sql", "sql_strategy": { "name": "/srv/archive.db", "constraints": "relaxed" } } },
    }}))
    .unwrap();
    let names: Vec<String> = config.stores().into_iter().map(|store| store.name).collect();
    assert_eq!(names, ["sql", "json", "archive"]);
    assert_eq!(config.store(None).unwrap().name, "sql");
    let archive = config.store(Some("archive")).unwrap();
    assert_eq!(archive.location, "storage.stores.archive");
    assert_eq!(Value::Object(archive.section), json!({ "constraints": "relaxed" }));
    let Some(SqlGrant::Sqlite { path, .. }) = archive.grants.sql else { panic!() };
    assert_eq!(path, Path::new("/srv/archive.db"));
    let error = config.store(Some("archve")).unwrap_err();
    assert_eq!(error.message, "there is no store `archve`");
    assert!(error.hint.unwrap().starts_with("the stores are `archive`, "));
}

#[test]
fn the_default_store_can_be_a_named_one() {
    let config = resolved(json!({ "storage": {
        "strategy": "main", "stores": { "other": { "strategy": "json" }, "main": { "strategy": "sql" } }
    }}))
    .unwrap();
    assert_eq!(config.store(None).unwrap().strategy, "sql");
    let names: Vec<String> = config.stores().into_iter().map(|store| store.name).collect();
    assert_eq!(names, ["main", "other"]);
}

#[test]
fn a_built_in_strategy_without_a_section_has_its_defaults() {
    let config = resolved(json!({ "storage": { "strategy": "json" } })).unwrap();
    let Some(SqlGrant::Sqlite { path, .. }) = config.store(Some("sql")).unwrap().grants.sql else { panic!() };
    assert_eq!(path, here("request_database.db"));
    assert_eq!(config.stores().len(), 1, "it is not one of the stores that are described");
}

#[test]
fn one_name_for_two_stores_is_refused() {
    let value = json!({ "storage": { "json_strategy": {}, "stores": { "json": { "strategy": "json" } } } });
    assert_eq!(refusal(value), "`json` names two stores: `storage.json_strategy` and `storage.stores.json`");
    let value = json!({ "storage": { "stores": { "a": { "strategy": "json", "sql_strategy": {} } } } });
    assert_eq!(
        refusal(value),
        "`storage.stores.a.sql_strategy` is not the section of the strategy `json`: did you mean `json_strategy`?"
    );
}

#[test]
fn a_third_party_strategy_borrows_what_is_written() {
    let grants = json!({ "files": { "directory": "/srv/kv" }, "sql": { "type": "sqlite", "name": "/srv/kv.db" } });
    let section = json!({ "anything": [1, 2.50, "x"] });
    for value in [
        json!({ "storage": { "strategy": "kv", "kv_strategy": section, "grants": grants } }),
        json!({ "storage": { "strategy": "a", "stores": { "a": { "strategy": "kv", "kv_strategy": section, "grants": grants } } } }),
    ] {
        let store = resolved(value).unwrap().store(None).unwrap();
        assert_eq!(store.strategy, "kv");
        assert_eq!(Value::Object(store.section), section);
        assert_eq!(store.grants.files.unwrap().directory, Path::new("/srv/kv"));
        assert!(matches!(store.grants.sql, Some(SqlGrant::Sqlite { path, .. }) if path == Path::new("/srv/kv.db")));
    }
    let store = resolved(json!({ "storage": { "strategy": "kv" } })).unwrap().store(None).unwrap();
    assert_eq!(store.grants, Grants::default(), "nothing is lent that is not written");
}

#[test]
fn a_built_in_strategy_borrows_what_its_section_says_and_nothing_else() {
    let grants = json!({ "files": { "directory": "/srv" } });
    for value in [
        json!({ "storage": { "grants": grants } }),
        json!({ "storage": { "stores": { "a": { "strategy": "sql", "grants": grants } } } }),
        json!({ "storage": { "strategy": "a", "stores": { "a": { "strategy": "sql" } }, "grants": grants } }),
    ] {
        assert!(refusal(value).contains("grants"));
    }
    let value = json!({ "storage": { "strategy": "kv", "grants": { "sql": { "constraints": "strict" } } } });
    assert!(refusal(value).starts_with("`storage.grants.sql.constraints` is no known key"));
}

#[test]
fn a_directory_with_the_configuration_the_plugins_or_the_state_is_not_lent() {
    let folder = Folder::new("reach");
    std::fs::create_dir(folder.path("real")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path(""), folder.path("link")).unwrap();
    let load = |storage: Value| {
        let plugins = json!({ "directory": "plugged/in" });
        Config::load(Some(&folder.write("etc/larder.json", &json!({ "storage": storage, "plugins": plugins }))))
    };
    let json = |path: &str| load(json!({ "json_strategy": { "base_path": folder.path(path) } }));
    let sql = |path: &str| load(json!({ "strategy": "sql", "sql_strategy": { "name": folder.path(path) } }));
    let kv = |path: &str| load(json!({ "strategy": "kv", "grants": { "files": { "directory": folder.path(path) } } }));

    for (refused, what) in [
        (json(""), "the configuration"),
        (json("etc"), "the configuration"),
        (json("real/.."), "the configuration"),
        (json("none/../etc"), "the configuration"),
        (json("etc/plugged"), "plugins"),
        (json("etc/plugged/in"), "plugins"),
        (json("etc/plugged/in/data"), "plugins"),
        (json("etc/.larder"), "the state of migrations"),
        (json("etc/.larder/data"), "the state of migrations"),
        (kv("etc"), "the configuration"),
        (sql("etc/larder.json"), "the configuration"),
        (sql("etc/.larder/x.db"), "the state of migrations"),
        (sql("etc/plugged/in/json.wasm"), "plugins"),
        #[cfg(unix)]
        (json("link"), "the configuration"),
        #[cfg(unix)]
        (json("link/etc/plugged"), "plugins"),
    ] {
        let error = refused.expect_err(what);
        assert!(error.causes[0].contains(&format!("would be lent {what} ")), "{what}: {error:?}");
        assert!(error.hint.is_some());
    }
    for accepted in [json("data"), json("etc/data"), json("etc/plugged/index"), sql("etc/x.db"), kv("real")] {
        accepted.unwrap();
    }
}

#[test]
fn the_plugins_directory_is_told_by_flag_then_by_configuration_and_is_not_lent() {
    let folder = Folder::new("plugins");
    let value = json!({ "storage": { "json_strategy": { "base_path": folder.path("data") } }, "plugins": { "directory": "p" } });
    let config = Config::load(Some(&folder.write("larder.json", &value))).unwrap();
    assert_eq!(config.plugins_directory(Some(Path::new("/opt/p"))).unwrap(), Path::new("/opt/p"));
    assert_eq!(config.plugins_directory(None).unwrap(), folder.0.join("p"));
    config.plugins_directory(Some(Path::new(&folder.path("data/p")))).unwrap_err();
    let beside = resolved(json!({})).unwrap().plugins_directory(None).unwrap();
    assert_eq!(beside, std::env::current_exe().unwrap().with_file_name("plugins"));
}

#[test]
fn a_file_is_loaded_and_a_missing_one_comes_with_advice() {
    let folder = Folder::new("load");
    let path =
        folder.write("larder.json", &json!({ "storage": { "json_strategy": { "base_path": folder.path("data") } } }));
    let config = Config::load(Some(&path)).unwrap();
    assert_eq!(config.path(), Some(path.as_path()));
    assert_eq!(config.state_directory(), folder.0.join(".larder"));
    let error = Config::load(Some(Path::new(&folder.path("none.json")))).unwrap_err();
    assert!(error.message.starts_with("there is no configuration file"), "{error:?}");
    let hint = error.hint.unwrap();
    assert!(hint.contains("--config"), "{hint}");
    let example = &hint[hint.find('{').unwrap()..];
    resolved(serde_json::from_str(example).unwrap()).unwrap();
    Config::load(Some(&folder.0)).unwrap_err();
}

// Collections.

#[test]
fn the_built_in_collections_are_their_tables() {
    let config = resolved(json!({})).unwrap();
    let sql = |collection: &Collection| {
        let columns = collection.fields.iter().map(|field| {
            let ty = match (field.ty, field.max_length) {
                (FieldType::Text, Some(length)) => format!("VARCHAR({length})"),
                (FieldType::Integer, None) => "INTEGER".to_owned(),
                (FieldType::Timestamp, None) => "TIMESTAMP".to_owned(),
                (FieldType::Json, None) => "TEXT".to_owned(),
                other => panic!("{other:?}"),
            };
            format!("{} {ty}{}", field.name, if field.required { " NOT NULL" } else { "" })
        });
        let keys = collection
            .references
            .iter()
            .map(|key| format!("FOREIGN KEY ({}) REFERENCES {}", key.field, key.collection));
        columns.chain(keys).collect::<Vec<_>>().join(", ")
    };
    let [templates, requests, machines] = config.collections() else { panic!() };
    assert_eq!(
        sql(templates),
        "name VARCHAR(255) NOT NULL, provider_api VARCHAR(50) NOT NULL, vm_type VARCHAR(50) NOT NULL, \
         max_number INTEGER NOT NULL, image_id VARCHAR(255), subnet_ids TEXT, security_group_ids TEXT, attributes TEXT, \
         created_at TIMESTAMP, updated_at TIMESTAMP"
    );
    assert_eq!(
        sql(requests),
        "template_id VARCHAR(255) NOT NULL, machine_count INTEGER NOT NULL, status VARCHAR(50) NOT NULL, \
         request_type VARCHAR(50) NOT NULL, created_at TIMESTAMP, updated_at TIMESTAMP, completed_at TIMESTAMP, tags TEXT, \
         metadata TEXT, FOREIGN KEY (template_id) REFERENCES templates"
    );
    assert_eq!(
        sql(machines),
        "request_id VARCHAR(255) NOT NULL, template_id VARCHAR(255) NOT NULL, status VARCHAR(50) NOT NULL, \
         instance_type VARCHAR(50), provider_instance_id VARCHAR(255), private_ip VARCHAR(45), public_ip VARCHAR(45), \
         created_at TIMESTAMP, started_at TIMESTAMP, terminated_at TIMESTAMP, \
         FOREIGN KEY (request_id) REFERENCES requests, FOREIGN KEY (template_id) REFERENCES templates"
    );
    let keys: Vec<&str> = config.collections().iter().map(|collection| collection.key.as_str()).collect();
    assert_eq!(keys, ["template_id", "request_id", "machine_id"]);
    assert_eq!([templates, requests, machines].map(|collection| collection.stamps.adds_updated), [true, true, false]);
}

#[test]
fn a_collection_is_declared_or_replaced_as_a_whole() {
    let config = resolved(json!({ "storage": { "collections": {
        "hosts": {
            "key": "hostId", "version": "rev", "created_at": "born", "updated_at": false,
            "fields": {
                "zone": { "type": "text", "required": true, "max_length": 9 },
                "cores": { "type": "integer" },
                "hostId": { "type": "text" },
                "born": { "type": "timestamp" },
                "request": { "type": "text" },
            },
            "indexes": { "by-zone": ["zone", "anything"] },
            "references": { "request": "requests" },
        },
        "templates": { "key": "id" },
    }}}))
    .unwrap();
    let names: Vec<&str> = config.collections().iter().map(|collection| collection.name.as_str()).collect();
    assert_eq!(names, ["templates", "requests", "machines", "hosts"]);
    let templates = &config.collections()[0];
    assert_eq!((templates.key.as_str(), templates.fields.len()), ("id", 0));
    assert_eq!(templates.stamps.created.as_deref(), Some("created_at"));
    let hosts = &config.collections()[3];
    assert_eq!((hosts.key.as_str(), hosts.stamps.version.as_str()), ("hostId", "rev"));
    assert_eq!((hosts.stamps.created.as_deref(), hosts.stamps.updated.as_deref()), (Some("born"), None));
    let fields: Vec<&str> = hosts.fields.iter().map(|field| field.name.as_str()).collect();
    assert_eq!(fields, ["zone", "cores", "born", "request"], "in the order written, without the key");
    assert_eq!((hosts.fields[0].required, hosts.fields[0].max_length), (true, Some(9)));
    assert_eq!(hosts.indexes[0].fields, ["zone", "anything"]);
    assert_eq!(hosts.references[0].collection, "requests");
    for off in [json!(null), json!(false)] {
        let value = json!({ "storage": { "collections": { "a": { "key": "id", "created_at": off } } } });
        assert_eq!(resolved(value).unwrap().collections()[3].stamps.created, None);
    }
}

#[test]
fn a_collection_that_cannot_be_is_refused() {
    let declared = |collection: Value| json!({ "storage": { "collections": { "hosts": collection } } });
    for (collection, expected) in [
        (json!({}), "`storage.collections.hosts.key` is missing"),
        (json!({ "key": "" }), "`storage.collections.hosts.key` must not be empty"),
        (json!({ "key": "id", "version": "id" }), "`storage.collections.hosts` uses the member `id` for two things"),
        (
            json!({ "key": "id", "fields": { "a": { "type": "varchar" } } }),
            "`storage.collections.hosts.fields.a.type` must be",
        ),
        (json!({ "key": "id", "fields": { "a": {} } }), "`storage.collections.hosts.fields.a.type` is missing"),
        (
            json!({ "key": "id", "fields": { "a": { "type": "json", "max_length": 5 } } }),
            "`storage.collections.hosts.fields.a.max_length` is for text only",
        ),
        (
            json!({ "key": "id", "fields": { "version": { "type": "text" } } }),
            "`storage.collections.hosts.fields.version` holds versions",
        ),
        (
            json!({ "key": "id", "fields": { "created_at": { "type": "integer" } } }),
            "`storage.collections.hosts.fields.created_at` holds times",
        ),
        (
            json!({ "key": "id", "fields": { "a": { "type": "text" }, "A": { "type": "text" } } }),
            "`storage.collections.hosts.fields` has `a` and `A`",
        ),
        (json!({ "key": "id", "indexes": { "i": [] } }), "`storage.collections.hosts.indexes.i` names no member"),
        (
            json!({ "key": "id", "indexes": { "i": ["a", "a"] } }),
            "`storage.collections.hosts.indexes.i` names `a` twice",
        ),
        (
            json!({ "key": "id", "references": { "a": "requests" } }),
            "`storage.collections.hosts.references.a` is no field of the type `text`",
        ),
        (
            json!({ "key": "id", "fields": { "a": { "type": "text" } }, "references": { "a": "request" } }),
            "`storage.collections.hosts.references.a` refers to `request`, which is no collection: did you mean `requests`?",
        ),
    ] {
        let message = refusal(declared(collection));
        assert!(message.starts_with(expected), "{message}");
    }
    let names = ["a b", "", "../x", "1a", "Requests", &"a".repeat(64)];
    for name in names {
        refusal(json!({ "storage": { "collections": { name: { "key": "id" } } } }));
    }
}

// What a plugin publishes.

#[test]
fn a_section_is_checked_with_the_schema_of_its_plugin() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["bucket"],
        "properties": { "bucket": { "type": "string" }, "level": { "$ref": "#/$defs/level" } },
        "$defs": { "level": { "type": "object", "additionalProperties": false, "properties": { "depth": { "maximum": 3 } } } }
    })
    .to_string();
    let check = |section: Value| check_section("kv", &section, &schema).map_err(|error| error.message);
    assert_eq!(check(json!({ "bucket": "b" })), Ok(()));
    assert_eq!(check(json!({})), Err("`kv_strategy.bucket` is missing".to_owned()));
    assert_eq!(
        check(json!({ "bucket": "b", "buket": 1 })),
        Err("`kv_strategy.buket` is no known key: did you mean `bucket`?".to_owned())
    );
    assert_eq!(
        check(json!({ "bucket": "b", "level": { "dept": 1 } })),
        Err("`kv_strategy.level.dept` is no known key: did you mean `depth`?".to_owned())
    );
    assert_eq!(
        check(json!({ "bucket": "b", "level": { "depth": 4 } })),
        Err("`kv_strategy.level.depth` must be at most 3".to_owned())
    );
}

#[test]
fn a_schema_that_is_none_refuses_its_plugin() {
    for schema in [
        "",
        "{\"type\": 5}",
        "{\"minimum\": 1e999}",
        "{\"pattern\": \"(\"}",
        "{\"$ref\": \"http://localhost:1/schema\"}",
        "{\"$ref\": \"file:///etc/passwd\"}",
    ] {
        let error = check_section("kv", &json!({ "a": "b" }), schema).expect_err(schema);
        assert_eq!(error.kind, crate::error::Kind::PluginRefused, "{schema}");
    }
}

// The documentation.

#[test]
fn the_schema_accepts_its_own_defaults_and_names_no_unknown_one() {
    let schema = schema();
    jsonschema::meta::validate(&schema).unwrap();
    for (path, key) in schema::keys(&schema) {
        assert!(key.get("description").is_some(), "{path} has no description");
        if let Some(default) = key.get("default") {
            assert!(jsonschema::is_valid(&key, default), "{path} does not allow its default {default}");
        }
    }
}

/// The table of docs/configuration.md, from the schema.
fn table_of_keys() -> String {
    let mut table = String::new();
    let mut section = None;
    for (path, key) in schema::keys(&schema()) {
        let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent).to_owned();
        if section.as_ref() != Some(&parent) {
            let title = if parent.is_empty() { "The top".to_owned() } else { format!("`{parent}`") };
            table
                .push_str(&format!("\n### {title}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n"));
            section = Some(parent);
        }
        let ty = match &key["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
            ty => ty.as_str().unwrap_or_default().to_owned(),
        };
        let bound = |name: &str| key.get(name).map(ToString::to_string);
        let range = match (bound("minimum"), bound("exclusiveMinimum"), bound("maximum")) {
            (None, Some(least), Some(most)) => format!(", more than {least}, up to {most}"),
            (Some(least), _, Some(most)) => format!(", {least} to {most}"),
            _ => String::new(),
        };
        let default = key.get("default").map(|default| format!("`{default}`")).unwrap_or_default();
        let meaning = key["description"].as_str().unwrap_or_default();
        table.push_str(&format!("| `{path}` | {ty}{range} | {default} | {meaning} |\n"));
    }
    table
}

#[test]
fn the_documentation_lists_every_key_with_its_default_and_no_other() {
    let documentation = include_str!("../../../docs/configuration.md");
    let (_, rest) = documentation.split_once("<!-- keys -->\n").expect("the table begins at <!-- keys -->");
    let (documented, _) = rest.split_once("\n<!-- end of keys -->").expect("the table ends at <!-- end of keys -->");
    let table = table_of_keys();
    assert!(documented == table, "docs/configuration.md should have this table:\n{table}");
}

#[test]
fn every_example_of_the_documentation_is_a_configuration() {
    let documentation = include_str!("../../../docs/configuration.md");
    let examples: Vec<&str> =
        documentation.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 8, "{}", examples.len());
    for example in examples {
        let value = serde_json::from_str(example).unwrap_or_else(|error| panic!("{error}: {example}"));
        resolved(value).unwrap_or_else(|error| panic!("{error:?}: {example}"));
    }
}
