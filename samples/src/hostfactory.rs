//! 2,550 entities as a host factory on AWS writes them: most members have no column in the built-in tables, many are
//! null, some are nested, a name is not ASCII, times end in `Z` here and in `+00:00` there, versions start at 0, and
//! return requests name a template that does not exist. The strict tables refuse this document; the relaxed ones keep
//! all of it.

use serde_json::{Map, Value, json};

use crate::random::Random;

const TEMPLATES: usize = 50;
const ACQUIRE_REQUESTS: usize = 400;
const RETURN_REQUESTS: usize = 100;
const MACHINES_PER_REQUEST: usize = 5;

const PROVIDER_APIS: &[&str] = &["RunInstances", "EC2Fleet", "SpotFleet", "ASG"];
const ZONES: &[&str] = &["us-east-1a", "us-east-1b", "us-east-1c"];
const INSTANCE_TYPES: &[&str] =
    &["t3.medium", "t3.xlarge", "m5.xlarge", "m5.4xlarge", "c5.2xlarge", "c6i.8xlarge", "r6g.xlarge", "g4dn.xlarge"];

/// A document in the single-file layout with 50 templates, 500 requests and 2,000 machines.
pub fn hostfactory(seed: u64) -> String {
    let mut random = Random::new(seed);
    let mut templates = Map::new();
    let mut requests = Map::new();
    let mut machines = Map::new();

    for n in 0..TEMPLATES {
        let template = template(&mut random, n);
        insert(&mut templates, "template_id", template);
    }
    let template_values: Vec<Value> = templates.values().cloned().collect();
    for n in 0..ACQUIRE_REQUESTS {
        let template = &template_values[random.below(TEMPLATES as u64) as usize];
        let machine_ids: Vec<String> = (0..MACHINES_PER_REQUEST).map(|_| format!("i-{}", random.hex(17))).collect();
        let request = acquire_request(&mut random, n, template, &machine_ids);
        for (position, machine_id) in machine_ids.iter().enumerate() {
            let machine = machine(&mut random, n, position, machine_id, &request);
            insert(&mut machines, "machine_id", machine);
        }
        insert(&mut requests, "request_id", request);
    }
    let machine_ids: Vec<String> = machines.keys().cloned().collect();
    for n in 0..RETURN_REQUESTS {
        let returned: Vec<&str> = (0..3).map(|position| machine_ids[n * 20 + position * 5].as_str()).collect();
        let request = return_request(&mut random, n, &returned);
        insert(&mut requests, "request_id", request);
    }

    let document = json!({ "templates": templates, "requests": requests, "machines": machines });
    let mut text = serde_json::to_string_pretty(&document).expect("a value renders");
    text.push('\n');
    text
}

fn insert(collection: &mut Map<String, Value>, key: &str, entity: Value) {
    let id = entity[key].as_str().expect("every sample has its key").to_owned();
    collection.insert(id, entity);
}

/// The time `minutes` after eight o'clock on the first of March 2026, without its zone.
fn time(minutes: usize, seconds: &str) -> String {
    let total = 8 * 60 + minutes;
    format!("2026-03-{:02}T{:02}:{:02}:{seconds}", 1 + total / 1440, total / 60 % 24, total % 60)
}

fn zoned(minutes: usize, seconds: &str) -> String {
    time(minutes, seconds) + "+00:00"
}

fn template(random: &mut Random, n: usize) -> Value {
    let provider_api = PROVIDER_APIS[n % PROVIDER_APIS.len()];
    let spot = random.chance(40);
    let price_type = if spot { "spot" } else { "ondemand" };
    let machine_types: Map<String, Value> =
        (0..3).map(|_| (random.pick(INSTANCE_TYPES).to_owned(), json!(1 + random.below(8)))).collect();
    let mut tags = json!({ "Environment": "prod", "CostCenter": format!("cc-{}", n % 7) });
    if n % 7 < 6 {
        tags["Équipe"] = json!("calcul");
    }
    json!({
        "template_id": format!("{provider_api}-{}-{n:04}", if spot { "Spot" } else { "OnDemand" }),
        "name": format!("{provider_api} {price_type} pool {n}"),
        "description": format!("HPC pool {n} — zone {}", ZONES[n % ZONES.len()]),
        "image_id": format!("ami-{}", random.hex(17)),
        "max_instances": random.pick(&[10, 50, 100, 500]),
        "machine_types": machine_types,
        "machine_types_ondemand": {},
        "machine_types_priority": {},
        "subnet_ids": [format!("subnet-{}", random.hex(17)), format!("subnet-{}", random.hex(17))],
        "security_group_ids": [format!("sg-{}", random.hex(17))],
        "network_zones": [],
        "public_ip_assignment": null,
        "root_device_volume_size": random.pick(&[20, 50, 200]),
        "volume_type": "gp3",
        "iops": 3000,
        "throughput": 125,
        "storage_encryption": true,
        "encryption_key": null,
        "key_name": "worker-key",
        "user_data": format!("#!/bin/bash\nset -e\n/opt/scheduler/join.sh --pool {n}\n"),
        "instance_profile": "arn:aws:iam::123456789012:instance-profile/worker",
        "monitoring_enabled": n % 2 == 1,
        "price_type": price_type,
        "allocation_strategy": if spot { "priceCapacityOptimized" } else { "lowestPrice" },
        "max_price": if spot { json!(0.42) } else { Value::Null },
        "tags": tags,
        "metadata": { "fleet_type": "instant" },
        "provider_type": "aws",
        "provider_name": "aws_default_us-east-1",
        "provider_api": provider_api,
        "is_active": true,
        "created_at": zoned(0, "00"),
        "updated_at": zoned(n * 60, "00"),
        "schema_version": "2.0.0",
        "version": 1,
    })
}

fn acquire_request(random: &mut Random, n: usize, template: &Value, machine_ids: &[String]) -> Value {
    let provider_api = template["provider_api"].as_str().expect("a template has its api");
    let (status, message) = match random.below(20) {
        0..=13 => ("complete", Some("All requested instances are running.")),
        14 | 15 => ("in_progress", Some("Instances are still being launched.")),
        16 => ("partial", Some("Instances are still being launched.")),
        17 => ("failed", Some("Not enough capacity in the zone that was asked for.")),
        _ => ("pending", None),
    };
    let (complete, failed) = (status == "complete", status == "failed");
    let resource_id = match provider_api {
        "RunInstances" => format!("r-{}", random.hex(17)),
        "EC2Fleet" => format!("fleet-{}", random.uuid()),
        "SpotFleet" => format!("sfr-{}", random.uuid()),
        _ => format!("asg-{}", random.hex(8)),
    };
    let minutes = n * 3;
    let count = machine_ids.len();
    json!({
        "request_id": format!("req-{}", random.uuid()),
        "template_id": template["template_id"],
        "machine_count": count,
        "requested_count": count,
        "desired_capacity": count,
        "request_type": "acquire",
        "status": status,
        "status_message": message,
        "provider_name": "aws_default_us-east-1",
        "provider_api": provider_api,
        "provider_type": "aws",
        "resource_ids": [resource_id],
        "machine_ids": machine_ids,
        "message": message,
        "successful_count": if complete { count } else { 0 },
        "failed_count": if failed { count } else { 0 },
        "metadata": {
            "timeout": 3600,
            "tags": { "job": format!("job-{n}"), "user": random.pick(&["alice", "bob", "chloé", "дарья"]) },
            "launch_template_id": format!("lt-{}", random.hex(17)),
            "launch_template_version": "1",
        },
        "error_details": if failed { json!({ "code": "InsufficientInstanceCapacity" }) } else { json!({}) },
        "provider_data": {
            "method": "provisioning_adapter",
            "instance_type": random.pick(INSTANCE_TYPES),
            "target_units": count,
            "fleet_type": "instant",
        },
        "created_at": zoned(minutes, "00"),
        "started_at": zoned(minutes, "01.234567"),
        "completed_at": (complete || failed).then(|| zoned(minutes + 1, "35")),
        "first_status_check": zoned(minutes, "05"),
        "last_status_check": zoned(minutes + 1, "30"),
        "deadline_at": zoned(minutes + 60, "00"),
        "partial_since": null,
        "last_transition_at": zoned(minutes + 1, "35"),
        "fulfilment_diagnostic": null,
        "version": 1 + random.below(6),
        "timeout": 3600,
        "error_message": message,
        "schema_version": "2.0.0",
    })
}

fn return_request(random: &mut Random, n: usize, machine_ids: &[&str]) -> Value {
    let status = if random.chance(70) { "complete" } else { "pending" };
    json!({
        "request_id": format!("ret-{}", random.uuid()),
        // No template has this id: the earlier system writes it all the same.
        "template_id": "return-request",
        "machine_count": machine_ids.len(),
        "requested_count": machine_ids.len(),
        "desired_capacity": machine_ids.len(),
        "request_type": "return",
        "status": status,
        "status_message": null,
        "provider_name": "aws_default_us-east-1",
        "provider_api": "EC2Fleet",
        "provider_type": "aws",
        "resource_ids": [],
        "machine_ids": machine_ids,
        "message": null,
        "successful_count": 0,
        "failed_count": 0,
        "metadata": {},
        "error_details": {},
        "provider_data": {},
        "created_at": zoned(1440 + n * 60, "00"),
        "started_at": null,
        "completed_at": null,
        "first_status_check": null,
        "last_status_check": null,
        "deadline_at": null,
        "partial_since": null,
        "last_transition_at": null,
        "fulfilment_diagnostic": null,
        "version": 1 + random.below(3),
        "timeout": null,
        "error_message": null,
        "schema_version": "2.0.0",
    })
}

fn machine(random: &mut Random, n: usize, position: usize, machine_id: &str, request: &Value) -> Value {
    let minutes = n * 3;
    let address = [10, random.below(256), random.below(256), random.below(256)].map(|part| part.to_string());
    let dns_name = format!("ip-{}.ec2.internal", address.join("-"));
    let status = match random.below(20) {
        0..=13 => "running",
        14..=16 => "terminated",
        17 => "pending",
        18 => "stopped",
        _ => "shutting-down",
    };
    let public_ip = random.chance(30).then(|| format!("54.{}.{}.{}", 142, random.below(256), random.below(256)));
    json!({
        "created_at": time(minutes, "03Z"),
        "updated_at": time(minutes + 1, "00Z"),
        "machine_id": machine_id,
        "name": dns_name,
        "template_id": request["template_id"],
        "request_id": request["request_id"],
        "return_request_id": null,
        "provider_type": "aws",
        "provider_name": "aws_default_us-east-1",
        "provider_api": request["provider_api"],
        "resource_id": request["resource_ids"][0],
        "instance_type": random.pick(INSTANCE_TYPES),
        "image_id": format!("ami-{}", random.hex(17)),
        "price_type": "ondemand",
        "private_ip": address.join("."),
        "public_ip": public_ip,
        "private_dns_name": dns_name,
        "public_dns_name": null,
        "subnet_id": format!("subnet-{}", random.hex(17)),
        "security_group_ids": [format!("sg-{}", random.hex(17))],
        "vpc_id": format!("vpc-{}", random.hex(17)),
        "status": status,
        "status_reason": if status == "running" { Value::Null } else { json!("User initiated") },
        "launch_time": time(minutes, &format!("{}Z", 30 + position)),
        "provisioning_started_at": time(minutes, "02Z"),
        "termination_time": (status == "terminated").then(|| time(minutes + 384, "00Z")),
        "tags": { "Name": format!("hf-{machine_id}"), "Environment": "prod" },
        "metadata": { "ebs_optimized": true, "monitoring": "disabled" },
        "provider_data": {
            "cloud_host_id": machine_id,
            "availability_zone": random.pick(ZONES),
            "region": "us-east-1",
            "vcpus": random.pick(&[2, 4, 8]),
            "platform_details": "Linux/UNIX",
            "ena_support": true,
        },
        "version": random.below(5),
        "schema_version": "2.0.0",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        assert_eq!(hostfactory(7), hostfactory(7));
    }

    #[test]
    fn the_document_has_what_makes_real_ones_hard() {
        let document: Value = serde_json::from_str(&hostfactory(7)).unwrap();
        let collection = |name: &str| document[name].as_object().unwrap().clone();
        let (templates, requests, machines) = (collection("templates"), collection("requests"), collection("machines"));
        assert_eq!((templates.len(), requests.len(), machines.len()), (50, 500, 2_000));

        assert!(requests.values().filter(|request| request["template_id"] == "return-request").count() == 100);
        assert!(!templates.contains_key("return-request"));
        assert!(templates.values().all(|template| template.get("vm_type").is_none()));
        assert!(templates.values().any(|template| template["tags"]["Équipe"] == "calcul"));
        assert!(machines.values().any(|machine| machine["version"] == 0));
        assert!(machines.values().any(|machine| machine["created_at"].as_str().unwrap().ends_with('Z')));
        assert!(requests.values().any(|request| request["created_at"].as_str().unwrap().ends_with("+00:00")));
        for machine in machines.values() {
            assert!(requests.contains_key(machine["request_id"].as_str().unwrap()));
            assert!(templates.contains_key(machine["template_id"].as_str().unwrap()));
        }
        for request in requests.values() {
            for id in request["machine_ids"].as_array().unwrap() {
                assert!(machines.contains_key(id.as_str().unwrap()));
            }
        }
    }
}
