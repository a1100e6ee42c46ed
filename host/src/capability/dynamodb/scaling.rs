//! Auto scaling: a table and its indexes are registered with Application Auto Scaling, which keeps the units in use near a
//! percentage of those provisioned. It is another service with permissions of its own, so it is asked only where the
//! configuration wants it, by a few requests one after another, at a pace of its own.

use aws_sdk_applicationautoscaling::types::{
    MetricType, PolicyType, PredefinedMetricSpecification, ScalableDimension, ServiceNamespace,
    TargetTrackingScalingPolicyConfiguration,
};
use larder_model::{Error, ErrorKind, Result};
use tokio::time::Instant;

use super::client::{Clients, Scaling, send};
use super::{TableSpec, TableStatus, Tables};
use crate::config::AutoScaling;

const SERVICE: ServiceNamespace = ServiceNamespace::Dynamodb;

/// Read or write units of a table or of an index.
struct Dimension {
    dimension: ScalableDimension,
    metric: MetricType,
    least: i32,
    most: i32,
}

/// What is registered of one dimension.
#[derive(Default)]
struct Registered {
    bounds: Option<(i32, i32)>,
    percent: Option<f64>,
}

impl Tables {
    /// Registers what is not yet as configured: one line for the table and for each index that something was done to.
    pub(super) async fn prepare_scaling(
        &self,
        clients: &Clients,
        table: &str,
        spec: &TableSpec,
        dry_run: bool,
        deadline: Instant,
    ) -> Result<Vec<String>> {
        let Some(scaling) = &self.shared.grant.auto_scaling else { return Ok(Vec::new()) };
        let Some(client) = &clients.scaling else {
            return Ok(vec![format!(
                "table {table}: not scaled, because this endpoint has no Application Auto Scaling"
            )]);
        };
        let mut lines = Vec::new();
        for (what, resource, is_index) in resources(table, spec.indexes.iter().map(|(name, _)| name.as_str())) {
            let mut is_done = false;
            for dimension in dimensions(scaling, is_index) {
                let registered = registered(client, &resource, &dimension.dimension, deadline).await?;
                let is_bounded = registered.bounds == Some((dimension.least, dimension.most));
                let is_followed = registered.percent == Some(scaling.target_utilization.into());
                is_done |= !(is_bounded && is_followed);
                if !is_bounded && !dry_run {
                    register(client, &resource, &dimension, deadline).await?;
                }
                if !is_followed && !dry_run {
                    follow(client, &resource, &dimension, scaling.target_utilization, deadline).await?;
                }
            }
            if is_done {
                lines.push(format!("{what}: scaled between {}", bounds(scaling)));
            }
        }
        Ok(lines)
    }

    /// A sentence about the table and about each index, none where nothing is configured to scale them.
    pub(super) async fn describe_scaling(
        &self,
        clients: &Clients,
        status: &TableStatus,
        deadline: Instant,
    ) -> Result<Vec<String>> {
        let (Some(scaling), Some(client)) = (&self.shared.grant.auto_scaling, &clients.scaling) else {
            return Ok(Vec::new());
        };
        let mut sentences = Vec::new();
        for (what, resource, is_index) in resources(&status.name, status.indexes.iter().map(|it| it.name.as_str())) {
            let mut parts = Vec::new();
            for (kind, dimension) in ["read", "write"].iter().zip(dimensions(scaling, is_index)) {
                let registered = registered(client, &resource, &dimension.dimension, deadline).await?;
                if let Some((least, most)) = registered.bounds {
                    let percent = registered.percent.map_or("by no policy".to_owned(), |it| format!("at {it} %"));
                    parts.push(format!("{least} to {most} {kind} units {percent}"));
                }
            }
            if !parts.is_empty() {
                sentences.push(format!("{what}: {}", parts.join(", ")));
            }
        }
        Ok(sentences)
    }
}

/// The table and its indexes: what a person calls them, what the service does, and whether it is an index.
fn resources<'a>(table: &str, indexes: impl Iterator<Item = &'a str>) -> Vec<(String, String, bool)> {
    let own = (format!("table {table}"), format!("table/{table}"), false);
    let indexes =
        indexes.map(|index| (format!("index {index} of {table}"), format!("table/{table}/index/{index}"), true));
    [own].into_iter().chain(indexes).collect()
}

/// For reads and for writes.
fn dimensions(scaling: &AutoScaling, is_index: bool) -> [Dimension; 2] {
    let (read, write) = match is_index {
        false => {
            (ScalableDimension::DynamoDbTableReadCapacityUnits, ScalableDimension::DynamoDbTableWriteCapacityUnits)
        }
        true => (ScalableDimension::DynamoDbIndexReadCapacityUnits, ScalableDimension::DynamoDbIndexWriteCapacityUnits),
    };
    let units = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let dimension =
        |dimension, metric, least, most| Dimension { dimension, metric, least: units(least), most: units(most) };
    [
        dimension(read, MetricType::DynamoDbReadCapacityUtilization, scaling.read_min, scaling.read_max),
        dimension(write, MetricType::DynamoDbWriteCapacityUtilization, scaling.write_min, scaling.write_max),
    ]
}

fn bounds(scaling: &AutoScaling) -> String {
    let AutoScaling { read_min, read_max, write_min, write_max, target_utilization } = scaling;
    format!("{read_min} and {read_max} read, {write_min} and {write_max} write units, at {target_utilization} %")
}

async fn registered(
    client: &Scaling,
    resource: &str,
    dimension: &ScalableDimension,
    deadline: Instant,
) -> Result<Registered> {
    let request = client.requests.describe_scalable_targets().service_namespace(SERVICE).resource_ids(resource);
    let request = request.scalable_dimension(dimension.clone());
    let targets =
        send(&client.to_scaling, deadline, || request.clone().send()).await.map_err(|failed| failed.of_read())?;
    let target = targets.scalable_targets.unwrap_or_default().into_iter().next();
    let Some(target) = target else { return Ok(Registered::default()) };
    let request = client.requests.describe_scaling_policies().service_namespace(SERVICE).resource_id(resource);
    let request = request.scalable_dimension(dimension.clone());
    let policies =
        send(&client.to_scaling, deadline, || request.clone().send()).await.map_err(|failed| failed.of_read())?;
    let configurations = policies.scaling_policies.unwrap_or_default().into_iter();
    let percent =
        configurations.filter_map(|it| Some(it.target_tracking_scaling_policy_configuration?.target_value)).next();
    Ok(Registered { bounds: Some((target.min_capacity, target.max_capacity)), percent })
}

async fn register(client: &Scaling, resource: &str, dimension: &Dimension, deadline: Instant) -> Result<()> {
    let request = client
        .requests
        .register_scalable_target()
        .service_namespace(SERVICE)
        .resource_id(resource)
        .scalable_dimension(dimension.dimension.clone())
        .min_capacity(dimension.least)
        .max_capacity(dimension.most);
    let sent = send(&client.to_scaling, deadline, || request.clone().send()).await;
    sent.map(drop).map_err(|failed| failed.of_write())
}

async fn follow(
    client: &Scaling,
    resource: &str,
    dimension: &Dimension,
    percent: u32,
    deadline: Instant,
) -> Result<()> {
    let metric = PredefinedMetricSpecification::builder().predefined_metric_type(dimension.metric.clone()).build();
    let metric = metric.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    let tracking = TargetTrackingScalingPolicyConfiguration::builder()
        .target_value(percent.into())
        .predefined_metric_specification(metric)
        .build()
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    let request = client
        .requests
        .put_scaling_policy()
        // As the console of AWS names it, which so shows and replaces this one.
        .policy_name(format!("{}:{resource}", dimension.metric.as_str()))
        .service_namespace(SERVICE)
        .resource_id(resource)
        .scalable_dimension(dimension.dimension.clone())
        .policy_type(PolicyType::TargetTrackingScaling)
        .target_tracking_scaling_policy_configuration(tracking);
    let sent = send(&client.to_scaling, deadline, || request.clone().send()).await;
    sent.map(drop).map_err(|failed| failed.of_write())
}
