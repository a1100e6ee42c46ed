//! A document of any size in the single-file layout, for benchmarks and for tests that need many entities.

use std::fmt::Write;

use crate::random::Random;

const INSTANCE_TYPES: &[&str] = &["t3.medium", "t3.xlarge", "m5.4xlarge", "c5.2xlarge", "c6i.8xlarge", "r6g.xlarge"];
const MACHINES_PER_REQUEST: usize = 10;
const REQUESTS_PER_TEMPLATE: usize = 100;

/// A document with `count` machines of eight members each, the requests that asked for them (ten machines a request)
/// and the templates of those (a hundred requests a template). Everything fits the strict tables: what they require is
/// there, references resolve, texts are short enough.
///
/// One entity a line, in the order of their ids: `template-000001`, `req-000000001`, `machine-000000001` and so on.
pub fn machines(count: usize, seed: u64) -> String {
    let mut random = Random::new(seed);
    let requests = count.div_ceil(MACHINES_PER_REQUEST);
    let templates = requests.div_ceil(REQUESTS_PER_TEMPLATE);
    let mut text = String::with_capacity(count * 260 + requests * 280 + templates * 240 + 64);

    collection(&mut text, "{", "templates", templates, |text, n| {
        let vm_type = random.pick(INSTANCE_TYPES);
        write!(
            text,
            r#""template-{n:06}":{{"template_id":"template-{n:06}","name":"Pool {n}","provider_api":"RunInstances","#
        )?;
        write!(text, r#""vm_type":"{vm_type}","max_number":{},{}}}"#, 10 + random.below(490), times(n))
    });
    collection(&mut text, ",", "requests", requests, |text, n| {
        let template = (n - 1) / REQUESTS_PER_TEMPLATE + 1;
        let wanted = MACHINES_PER_REQUEST.min(count - (n - 1) * MACHINES_PER_REQUEST);
        let status = random.pick(&["COMPLETED", "COMPLETED", "COMPLETED", "RUNNING", "PENDING", "FAILED"]);
        write!(text, r#""req-{n:09}":{{"request_id":"req-{n:09}","template_id":"template-{template:06}","#)?;
        write!(text, r#""machine_count":{wanted},"status":"{status}","request_type":"acquire",{}}}"#, times(n))
    });
    collection(&mut text, ",", "machines", count, |text, n| {
        let request = (n - 1) / MACHINES_PER_REQUEST + 1;
        let template = (request - 1) / REQUESTS_PER_TEMPLATE + 1;
        let status = random.pick(&["RUNNING", "RUNNING", "RUNNING", "PENDING", "TERMINATED"]);
        let instance_type = random.pick(INSTANCE_TYPES);
        let private_ip = format!("10.{}.{}.{}", (n >> 16) & 255, (n >> 8) & 255, n & 255);
        write!(text, r#""machine-{n:09}":{{"machine_id":"machine-{n:09}","request_id":"req-{request:09}","#)?;
        write!(text, r#""template_id":"template-{template:06}","status":"{status}","#)?;
        write!(text, r#""instance_type":"{instance_type}","private_ip":"{private_ip}","#)?;
        write!(text, r#""created_at":"{}","version":{}}}"#, time(n), 1 + random.below(5))
    });
    text.push_str("}\n");
    text
}

fn collection(
    text: &mut String,
    opening: &str,
    name: &str,
    count: usize,
    mut entity: impl FnMut(&mut String, usize) -> std::fmt::Result,
) {
    text.push_str(&format!("{opening}\"{name}\":{{"));
    for n in 1..=count {
        text.push_str(if n == 1 { "\n" } else { ",\n" });
        entity(text, n).expect("writing to a String cannot fail");
    }
    text.push_str("\n}");
}

/// One second after another, from the first of March 2026 on; at most 28 days of them.
fn time(n: usize) -> String {
    let (day, second) = (n / 86_400 % 28 + 1, n % 86_400);
    format!("2026-03-{day:02}T{:02}:{:02}:{:02}.000000Z", second / 3600, second / 60 % 60, second % 60)
}

fn times(n: usize) -> String {
    format!(r#""created_at":"{0}","updated_at":"{0}","version":1"#, time(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn parsed(count: usize) -> Value {
        serde_json::from_str(&machines(count, 7)).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_gives_others() {
        assert_eq!(machines(50, 7), machines(50, 7));
        assert_ne!(machines(50, 7), machines(50, 8));
    }

    #[test]
    fn every_machine_has_eight_members_and_its_references_resolve() {
        let document = parsed(2_345);
        let (templates, requests) = (&document["templates"], &document["requests"]);
        assert_eq!(document["machines"].as_object().unwrap().len(), 2_345);
        assert_eq!(requests.as_object().unwrap().len(), 235);
        assert_eq!(templates.as_object().unwrap().len(), 3);
        for (id, machine) in document["machines"].as_object().unwrap() {
            assert_eq!(machine["machine_id"], id.as_str());
            assert_eq!(machine.as_object().unwrap().len(), 8);
            let request = &requests[machine["request_id"].as_str().unwrap()];
            assert_eq!(request["template_id"], machine["template_id"]);
            assert!(templates[machine["template_id"].as_str().unwrap()].is_object());
        }
    }

    #[test]
    fn what_the_strict_tables_require_is_there() {
        let document = parsed(120);
        for (collection, required) in [
            ("templates", &["template_id", "name", "provider_api", "vm_type", "max_number"][..]),
            ("requests", &["request_id", "template_id", "machine_count", "status", "request_type"]),
            ("machines", &["machine_id", "request_id", "template_id", "status"]),
        ] {
            for (id, entity) in document[collection].as_object().unwrap() {
                for member in required {
                    assert!(!entity[*member].is_null(), "{collection} {id} lacks {member}");
                }
            }
        }
    }

    #[test]
    fn an_empty_document_is_still_a_document() {
        assert_eq!(parsed(0)["machines"], serde_json::json!({}));
    }
}
