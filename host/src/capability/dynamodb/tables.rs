//! Tables: made as the configuration says, compared with what should be, described.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, CreateGlobalSecondaryIndexAction, GlobalSecondaryIndex,
    GlobalSecondaryIndexUpdate, KeySchemaElement, KeyType, Projection, ProjectionType, ProvisionedThroughput,
    ScalarAttributeType, TableDescription,
};
use larder_model::{Error, ErrorKind, Result, Retry};
use tokio::time::{Instant, sleep};

use super::client::{Clients, send};
use super::{Capacity, IndexStatus, KeySchema, TableSpec, TableStatus, Tables, errors};

/// Between two looks at a table that is being made: the first soon, because a local service is ready at once.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(20);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(2);
const ACTIVE: &str = "ACTIVE";

/// A table as the service describes it, with what a [`TableStatus`] does not hold.
struct Found {
    status: TableStatus,
    /// Types of key attributes, of the table and of its indexes.
    types: BTreeMap<String, String>,
}

impl Tables {
    /// Makes what is missing and says what it did; with `dry_run` what it would do.
    pub async fn prepare_table(&self, spec: &TableSpec, dry_run: bool, extend: bool) -> Result<Vec<String>> {
        let (table, deadline) = (self.table(&spec.collection)?, self.deadline());
        let clients = self.clients().await?;
        let mut lines = Vec::new();
        let missing = match self.find(clients, &table, deadline).await? {
            None => {
                lines.push(format!("table {table}: created{}, {}", with_indexes(spec), self.billing()));
                if !dry_run {
                    self.create(clients, &table, spec, deadline).await?;
                }
                Vec::new()
            }
            Some(found) => {
                let (differences, missing) = self.compare(spec, &found);
                if let Some(message) = refusal(&table, differences, &missing, extend) {
                    return Err(Error::new(ErrorKind::Rejected, message));
                }
                missing
            }
        };
        if !dry_run {
            self.wait(clients, &table, deadline).await?;
        }
        for (name, key) in missing {
            lines.push(format!("table {table}: index {name} added"));
            if !dry_run {
                self.add_index(clients, &table, name, key, deadline).await?;
                self.wait(clients, &table, deadline).await?;
            }
        }
        lines.extend(self.prepare_scaling(clients, &table, spec, dry_run, deadline).await?);
        Ok(lines)
    }

    /// None where there is no such table.
    pub async fn describe_table(&self, collection: &str) -> Result<Option<TableStatus>> {
        let (table, deadline) = (self.table(collection)?, self.deadline());
        let clients = self.clients().await?;
        let Some(Found { mut status, .. }) = self.find(clients, &table, deadline).await? else { return Ok(None) };
        status.scaling = self.describe_scaling(clients, &status, deadline).await?;
        Ok(Some(status))
    }

    /// What stands behind the prefix in the name of every table that has it.
    pub async fn list_collections(&self) -> Result<Vec<String>> {
        let deadline = self.deadline();
        let clients = self.clients().await?;
        let prefix = format!("{}_", self.shared.grant.table_prefix);
        let mut names = BTreeSet::new();
        let mut last = None;
        loop {
            let request = clients.tables.list_tables().set_exclusive_start_table_name(last);
            let page = send(&clients.to_tables, deadline, || request.clone().send())
                .await
                .map_err(|failed| failed.of_read())?;
            let page_names = page.table_names.unwrap_or_default();
            names.extend(page_names.iter().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned));
            last = page.last_evaluated_table_name;
            if last.is_none() {
                return Ok(names.into_iter().collect());
            }
        }
    }

    async fn find(&self, clients: &Clients, table: &str, deadline: Instant) -> Result<Option<Found>> {
        let request = clients.tables.describe_table().table_name(table);
        match send(&clients.to_tables, deadline, || request.clone().send()).await {
            Ok(answer) => Ok(answer.table.map(found)),
            Err(failed) if errors::code_of(&failed) == Some("ResourceNotFoundException") => Ok(None),
            Err(failed) => Err(failed.of_read()),
        }
    }

    async fn create(&self, clients: &Clients, table: &str, spec: &TableSpec, deadline: Instant) -> Result<()> {
        let keys = spec.indexes.iter().map(|(_, key)| key).chain([&spec.key]);
        let throughput = self.throughput()?;
        let indexes = spec.indexes.iter().map(|(name, key)| {
            GlobalSecondaryIndex::builder()
                .index_name(name)
                .set_key_schema(Some(key_elements(key)?))
                .projection(whole_items())
                .set_provisioned_throughput(throughput.clone())
                .build()
                .map_err(unmade)
        });
        let indexes = indexes.collect::<Result<Vec<_>>>()?;
        let request = clients.tables.create_table();
        let request = request
            .table_name(table)
            .set_attribute_definitions(Some(definitions(keys)?))
            .set_key_schema(Some(key_elements(&spec.key)?))
            .set_global_secondary_indexes((!indexes.is_empty()).then_some(indexes))
            .billing_mode(match throughput {
                Some(_) => BillingMode::Provisioned,
                None => BillingMode::PayPerRequest,
            })
            .set_provisioned_throughput(throughput);
        match send(&clients.to_tables, deadline, || request.clone().send()).await {
            // Somebody else makes it, or an earlier sending of this did.
            Err(failed) if errors::code_of(&failed) == Some("ResourceInUseException") => Ok(()),
            Err(failed) => Err(failed.of_write()),
            Ok(_) => Ok(()),
        }
    }

    async fn add_index(
        &self,
        clients: &Clients,
        table: &str,
        name: &str,
        key: &KeySchema,
        deadline: Instant,
    ) -> Result<()> {
        let action = CreateGlobalSecondaryIndexAction::builder()
            .index_name(name)
            .set_key_schema(Some(key_elements(key)?))
            .projection(whole_items())
            .set_provisioned_throughput(self.throughput()?);
        let update = GlobalSecondaryIndexUpdate::builder().create(action.build().map_err(unmade)?).build();
        let request = clients.tables.update_table().table_name(table).global_secondary_index_updates(update);
        let request = request.set_attribute_definitions(Some(definitions([key])?));
        let sent = send(&clients.to_tables, deadline, || request.clone().send()).await;
        sent.map(drop).map_err(|failed| failed.of_write())
    }

    /// Until the table and its indexes can be used.
    async fn wait(&self, clients: &Clients, table: &str, deadline: Instant) -> Result<()> {
        let mut pause = LOOK_PAUSE_MIN;
        loop {
            // A table that was made just now may not be seen yet.
            let status = match self.find(clients, table, deadline).await? {
                None => "not there yet".to_owned(),
                Some(found) => match unready(&found.status) {
                    None => return Ok(()),
                    Some(status) => status,
                },
            };
            if Instant::now() + pause >= deadline {
                let message = format!("table {table} is still being made: {status}");
                return Err(Error { retry: Retry::Safe, ..Error::new(ErrorKind::Timeout, message) });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_PAUSE_MAX);
        }
    }

    /// In what the table differs, and which indexes it lacks.
    fn compare<'a>(&self, spec: &'a TableSpec, found: &Found) -> (Vec<String>, Vec<(&'a String, &'a KeySchema)>) {
        let status = &found.status;
        let (mut differences, mut missing) = (Vec::new(), Vec::new());
        if status.key != spec.key {
            differences.push(format!("its key is {}, not {}", shown(&status.key), shown(&spec.key)));
        }
        let mut used = BTreeSet::from_iter(attributes(&spec.key));
        for (name, key) in &spec.indexes {
            let Some(index) = status.indexes.iter().find(|index| index.name == *name) else {
                missing.push((name, key));
                continue;
            };
            used.extend(attributes(key));
            if index.key != *key {
                differences.push(format!("its index {name} is over {}, not {}", shown(&index.key), shown(key)));
            }
            if !index.holds_whole_items {
                differences.push(format!("its index {name} does not hold whole items"));
            }
        }
        for name in used {
            if let Some(ty) = found.types.get(name).filter(|ty| *ty != ScalarAttributeType::S.as_str()) {
                differences.push(format!("its key attribute {name} is of the type {ty}, not S"));
            }
        }
        let grant = &self.shared.grant;
        match (status.capacity, grant.provisioned) {
            (None, Some(_)) => differences.push("it is paid by request, not provisioned".to_owned()),
            (Some(_), None) => differences.push("it is provisioned, not paid by request".to_owned()),
            // What scales the capacities has changed them.
            (Some(_), Some(_)) if grant.auto_scaling.is_some() => {}
            (Some(is), Some(should)) => {
                let should = Capacity { read: should.read.into(), write: should.write.into() };
                let indexes =
                    status.indexes.iter().filter(|index| spec.indexes.iter().any(|(name, _)| *name == index.name));
                let indexes = indexes.map(|index| (format!("its index {}", index.name), index.capacity));
                for (what, is) in [("it".to_owned(), Some(is))].into_iter().chain(indexes) {
                    if let Some(is) = is.filter(|is| *is != should) {
                        differences.push(format!("{what} has {}, not {}", units(is), units(should)));
                    }
                }
            }
            (None, None) => {}
        }
        (differences, missing)
    }

    fn throughput(&self) -> Result<Option<ProvisionedThroughput>> {
        let Some(units) = &self.shared.grant.provisioned else { return Ok(None) };
        let throughput = ProvisionedThroughput::builder()
            .read_capacity_units(units.read.into())
            .write_capacity_units(units.write.into());
        throughput.build().map(Some).map_err(unmade)
    }

    fn billing(&self) -> String {
        match &self.shared.grant.provisioned {
            Some(it) => units(Capacity { read: it.read.into(), write: it.write.into() }),
            None => "paid by request".to_owned(),
        }
    }
}

fn unmade(error: aws_sdk_dynamodb::error::BuildError) -> Error {
    Error::new(ErrorKind::Internal, error.to_string())
}

fn with_indexes(spec: &TableSpec) -> String {
    match &spec.indexes[..] {
        [] => String::new(),
        [(name, _)] => format!(" with index {name}"),
        indexes => {
            let names: Vec<&str> = indexes.iter().map(|(name, _)| name.as_str()).collect();
            format!(" with indexes {}", names.join(", "))
        }
    }
}

fn units(capacity: Capacity) -> String {
    format!("{} read and {} write units a second", capacity.read, capacity.write)
}

fn shown(key: &KeySchema) -> String {
    attributes(key).into_iter().collect::<Vec<_>>().join(", ")
}

fn attributes(key: &KeySchema) -> Vec<&str> {
    [Some(key.hash.as_str()), key.range.as_deref()].into_iter().flatten().collect()
}

/// Why a table is not as it should be, none where it is or can be made so.
fn refusal(
    table: &str,
    mut differences: Vec<String>,
    missing: &[(&String, &KeySchema)],
    extend: bool,
) -> Option<String> {
    if !extend {
        differences.extend(missing.iter().map(|(name, _)| format!("it lacks the index {name}, which `--extend` adds")));
    }
    (!differences.is_empty()).then(|| format!("table {table} differs: {}", differences.join("; ")))
}

/// What cannot be used yet, and the service's word for it.
fn unready(status: &TableStatus) -> Option<String> {
    // Indexes change while the table is ACTIVE or UPDATING.
    let indexes = status.indexes.iter().map(|index| (format!("index {}", index.name), &index.status));
    let all = [("the table".to_owned(), &status.status)].into_iter().chain(indexes);
    let mut unready = all.filter(|(_, status)| *status != ACTIVE);
    unready.next().map(|(what, status)| format!("{what} is {status}"))
}

fn key_elements(key: &KeySchema) -> Result<Vec<KeySchemaElement>> {
    let element =
        |name: &str, ty| KeySchemaElement::builder().attribute_name(name).key_type(ty).build().map_err(unmade);
    let range = key.range.as_deref().map(|range| element(range, KeyType::Range));
    [element(&key.hash, KeyType::Hash)].into_iter().chain(range).collect()
}

/// Of the attributes of all these keys, each once.
fn definitions<'a>(keys: impl IntoIterator<Item = &'a KeySchema>) -> Result<Vec<AttributeDefinition>> {
    let names: BTreeSet<&str> = keys.into_iter().flat_map(attributes).collect();
    let definition = |name| {
        AttributeDefinition::builder()
            .attribute_name(name)
            .attribute_type(ScalarAttributeType::S)
            .build()
            .map_err(unmade)
    };
    names.into_iter().map(definition).collect()
}

fn whole_items() -> Projection {
    Projection::builder().projection_type(ProjectionType::All).build()
}

fn found(table: TableDescription) -> Found {
    let is_by_request = table
        .billing_mode_summary
        .as_ref()
        .and_then(|summary| summary.billing_mode.as_ref())
        .is_some_and(|mode| *mode == BillingMode::PayPerRequest);
    let capacity = |read: Option<i64>, write: Option<i64>| {
        let units = |count: Option<i64>| u64::try_from(count.unwrap_or_default()).unwrap_or_default();
        (!is_by_request).then(|| Capacity { read: units(read), write: units(write) })
    };
    let indexes = table.global_secondary_indexes.unwrap_or_default().into_iter().map(|index| {
        let units = index.provisioned_throughput.as_ref();
        IndexStatus {
            name: index.index_name.unwrap_or_default(),
            status: index.index_status.map(|status| status.as_str().to_owned()).unwrap_or_default(),
            key: key_schema(&index.key_schema.unwrap_or_default()),
            holds_whole_items: index
                .projection
                .and_then(|projection| projection.projection_type)
                .is_some_and(|ty| ty == ProjectionType::All),
            capacity: capacity(
                units.and_then(|it| it.read_capacity_units),
                units.and_then(|it| it.write_capacity_units),
            ),
        }
    });
    let mut indexes: Vec<IndexStatus> = indexes.collect();
    indexes.sort_by(|a, b| a.name.cmp(&b.name));
    let units = table.provisioned_throughput.as_ref();
    let count = |count: Option<i64>| u64::try_from(count.unwrap_or_default()).unwrap_or_default();
    Found {
        types: table
            .attribute_definitions
            .unwrap_or_default()
            .into_iter()
            .map(|definition| (definition.attribute_name, definition.attribute_type.as_str().to_owned()))
            .collect(),
        status: TableStatus {
            name: table.table_name.unwrap_or_default(),
            status: table.table_status.map(|status| status.as_str().to_owned()).unwrap_or_default(),
            key: key_schema(&table.key_schema.unwrap_or_default()),
            indexes,
            capacity: capacity(
                units.and_then(|it| it.read_capacity_units),
                units.and_then(|it| it.write_capacity_units),
            ),
            items: count(table.item_count),
            bytes: count(table.table_size_bytes),
            scaling: Vec::new(),
        },
    }
}

fn key_schema(elements: &[KeySchemaElement]) -> KeySchema {
    let named =
        |ty| elements.iter().find(|element| element.key_type == ty).map(|element| element.attribute_name.clone());
    KeySchema { hash: named(KeyType::Hash).unwrap_or_default(), range: named(KeyType::Range) }
}
