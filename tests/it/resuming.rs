//! Migrations that do not run through: killed, interrupted, begun twice, gone on with after something changed, or with
//! entities that break a rule. Nothing is lost, nothing is moved that is not accounted for, and nothing is gone on with
//! that is no longer what it was.
//!
//! Processes are killed at moments that the seed chooses; `cargo xtask interruptions --kills N` does that for as long as
//! asked.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use larder::migration::{self, Event, Options, Step};
use larder_model::json;
use larder_samples::SEED;
use serde_json::{Map, Value};
use sqlx::Executor;

use crate::migration::{SOURCE, folder_for, migrate, report};
use crate::model::setting;
use crate::place::Choices;
use crate::support::{Folder, plugins, run_with};

/// Kills of the short form, for each pair of stores.
const KILLS: u64 = 3;
/// A run is killed within this time, or has come to its end.
const MILLISECONDS_MAX: u64 = 1_500;

/// A migration under way, whose events can be waited for.
struct Running {
    child: Child,
    events: BufReader<ChildStdout>,
}

impl Running {
    fn start(folder: &Folder, from: &str, to: &str, more: &[&str]) -> Running {
        let mut command = command(folder, from, to, more);
        let mut child = command.arg("--format=json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let events = BufReader::new(child.stdout.take().expect("a pipe"));
        Running { child, events }
    }

    /// Reads on until so many more entities were moved.
    fn moved(&mut self, entities: u64) -> u64 {
        self.advanced("move", entities)
    }

    /// Reads on until a step is done with so many more entities.
    fn advanced(&mut self, step: &str, entities: u64) -> u64 {
        let mut moved = 0;
        while moved < entities {
            let mut line = String::new();
            assert!(self.events.read_line(&mut line).unwrap() > 0, "it ended after {moved}: {}", self.stderr());
            let event = crate::support::object(line);
            if event["event"] == "advanced" && event["step"] == step {
                moved += event["entities"].as_u64().unwrap();
            }
        }
        moved
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut text).unwrap();
        text
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ctrl-C.
    fn interrupt(&self) {
        let status = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// The exit code, standard error, and the last line of standard output.
    fn end(mut self) -> (i32, String, String) {
        let mut stdout = String::new();
        self.events.read_to_string(&mut stdout).unwrap();
        let stderr = self.stderr();
        let code = self.child.wait().unwrap().code().expect("an exit code");
        (code, stderr, stdout.lines().last().unwrap_or_default().to_owned())
    }
}

fn command(folder: &Folder, from: &str, to: &str, more: &[&str]) -> Command {
    let mut arguments = vec!["migrate", "--from", from, "--to", to];
    arguments.extend(more);
    folder.command(&arguments)
}

/// Slow enough for something to happen meanwhile.
const SLOWLY: &[&str] = &["--no-backup", "--batch-size", "20", "--max-rate", "400"];

/// A migration of 1,000 machines that was killed when a part of them was moved.
fn unfinished(to: &str) -> Folder {
    let folder = folder_for(&larder_samples::machines(1000, SEED), to);
    let mut running = Running::start(&folder, "json", to, SLOWLY);
    running.moved(300);
    running.kill();
    folder
}

fn balanced(report: &Map<String, Value>) {
    for collection in report["collections"].as_array().unwrap() {
        let count = |name: &str| collection[name].as_u64().unwrap();
        let accounted = count("written") + count("unchanged") + count("skipped") + count("quarantined");
        assert_eq!(count("read"), accounted, "{collection}");
    }
}

fn sum(report: &Map<String, Value>, count: &str) -> u64 {
    report["collections"].as_array().unwrap().iter().map(|it| it[count].as_u64().unwrap()).sum()
}

/// What lies beside the state of the migration.
fn kept(folder: &Folder, to: &str, begins: &str) -> Vec<String> {
    let path = format!(".larder/migrations/json+{to}");
    let names = folder.names(&path).into_iter().filter(|name| name.starts_with(begins));
    names.map(|name| format!("{path}/{name}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_migration_is_gone_on_with_and_ends_equal() {
    let kills_max = setting("LARDER_MIGRATION_KILLS").unwrap_or(KILLS);
    let mut choices = Choices::new();
    for (from, to) in [("json", "sql"), ("sql", "postgres_relaxed"), ("json", "split"), ("json", "dynamodb")] {
        let (mut kills, mut resumed) = (0, 0);
        while kills < kills_max {
            let folder = folder_for(&larder_samples::machines(2000, SEED), to);
            if from != "json" {
                migrate(&folder, "json", from, &["--no-backup"]).exits(0);
            }
            let more = ["--no-backup", "--batch-size", "50", "--max-rate", "3000", "--resume"];
            loop {
                let mut running = command(&folder, from, to, &more);
                let mut child = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                let end = Instant::now() + Duration::from_micros(choices.below(MILLISECONDS_MAX * 1000));
                while Instant::now() < end && child.try_wait().unwrap().is_none() {
                    std::thread::sleep(Duration::from_micros(500));
                }
                if let Some(status) = child.try_wait().unwrap() {
                    assert!(status.success(), "{from} to {to}: {status}");
                    break;
                }
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                for database in folder.databases() {
                    // The server goes on with what it was sent, until it notices that nobody is there.
                    database.is_left_alone().await;
                }
                if kills % 3 == 0 || kills >= kills_max {
                    let run = migrate(&folder, from, to, &["--no-backup", "--resume", "--format", "json"]).exits(0);
                    let report = report(&run);
                    balanced(&report);
                    assert_eq!((&report["verified"], sum(&report, "read")), (&true.into(), 2202));
                    resumed += u64::from(report["resumed"] == true);
                    break;
                }
            }
            folder.larder(&["verify", "--from", from, "--to", to]).exits(0);
            let state = format!(".larder/migrations/{from}+{to}/state");
            assert!(!folder.has(&state), "what has ended leaves no state");
        }
        println!("{from} to {to}: {kills} kills, {resumed} runs gone on with, all equal");
    }
}

#[test]
fn what_arrived_is_not_moved_again_and_a_report_is_kept() {
    let folder = unfinished("sql");
    let run = migrate(&folder, "json", "sql", &["--no-backup", "--resume", "--format", "json"]).exits(0);
    let events: Vec<_> = run.stdout.lines().map(crate::support::object).collect();
    let told = events.iter().find(|event| event["event"] == "told").expect("it says that it goes on");
    assert!(told["message"].as_str().unwrap().starts_with("going on: "), "{told:?}");
    let last = report(&run);
    assert_eq!((&last["resumed"], &last["verified"]), (&true.into(), &true.into()));
    balanced(&last);
    let written = |run: &str| events.iter().filter(|event| event["event"] == run && event["step"] == "move").count();
    // A thousand machines at once, but for those that had arrived.
    assert!(written("advanced") > 3, "what had arrived is told of first");
    let reports = kept(&folder, "sql", "report-");
    assert_eq!(reports.len(), 1, "{reports:?}");
    let mut on_disk = crate::support::object(folder.read(&reports[0]));
    for plugin in ["from", "to"] {
        assert_eq!(on_disk[plugin]["sha256"].as_str().unwrap().len(), 64);
        assert!(!on_disk[plugin]["version"].as_str().unwrap().is_empty());
    }
    assert!(on_disk["steps"]["move"].as_f64().unwrap() > 0.0);
    on_disk.remove("seconds");
    let mut last = last;
    last.remove("seconds");
    assert!(json::equal_objects(&on_disk, &last), "the report is what was printed");
}

#[test]
fn what_takes_several_pages_is_gone_on_with_from_a_cursor() {
    let folder = folder_for(&larder_samples::machines(40_000, SEED), "split");
    let mut running = Running::start(&folder, "json", "split", &["--no-backup", "--workers", "1"]);
    // A page has some fifteen thousand machines.
    running.moved(30_000);
    running.interrupt();
    let (code, stderr, _) = running.end();
    assert_eq!(code, 130, "{stderr}");
    let state = folder.read(&kept(&folder, "split", "state")[0]);
    let state = crate::support::object(state.split_once('\n').expect("a checksum and a state").1);
    let position = &state["collections"][2]["positions"][0];
    assert!(position[0].is_string(), "{position}: it stands in a later page");
    let run = migrate(&folder, "json", "split", &["--no-backup", "--resume", "--format", "json"]).exits(0);
    let report = report(&run);
    balanced(&report);
    assert_eq!((sum(&report, "written"), sum(&report, "unchanged"), &report["verified"]), (44_040, 0, &true.into()));
}

#[test]
fn an_unfinished_migration_is_neither_forgotten_nor_gone_on_with_unasked() {
    let folder = unfinished("sql");
    let before = folder.read(&kept(&folder, "sql", "state")[0]);
    let run = migrate(&folder, "json", "sql", &[]).exits(2);
    assert!(
        run.stderr.starts_with("error: an earlier run of this migration was not finished\ncaused by: "),
        "{run:#?}"
    );
    assert!(run.stderr.contains("hint: --resume goes on where it stopped; --restart forgets it"), "{run:#?}");
    assert_eq!(folder.read(&kept(&folder, "sql", "state")[0]), before);
    // Another pair of stores is another migration.
    migrate(&folder, "json", "back", &["--no-backup"]).exits(0);
    let run = migrate(&folder, "json", "sql", &["--restart", "--no-backup", "--format", "json"]).exits(0);
    let report = report(&run);
    assert_eq!(report["resumed"], false);
    assert!(sum(&report, "unchanged") >= 300, "what had arrived counts as unchanged: {report:?}");
    balanced(&report);
}

#[test]
fn where_there_is_nothing_to_resume_it_begins_afresh_and_says_so() {
    let folder = folder_for(&larder_samples::machines(20, SEED), "sql");
    let run = migrate(&folder, "json", "sql", &["--resume"]).exits(0);
    assert!(run.stderr.starts_with("there is nothing to resume: starting afresh\n"), "{run:#?}");
}

#[test]
fn only_the_same_migration_is_gone_on_with_and_the_difference_is_named() {
    let folder = unfinished("sql");
    let refused = |folder: &Folder, more: &[&str], named: &str| {
        let mut arguments = vec!["--resume", "--no-backup"];
        arguments.extend(more);
        let run = migrate(folder, "json", "sql", &arguments).exits(2);
        let message = "error: the migration cannot go on: it was begun with something else\n";
        assert!(run.stderr.starts_with(message) && run.stderr.contains(named), "{named}: {run:#?}");
        assert!(run.stderr.contains("--restart"), "{run:#?}");
    };
    refused(&folder, &["--existing", "skip"], "caused by: --existing: it was fail, and is skip\n");
    refused(&folder, &["--on-invalid", "quarantine"], "caused by: --on-invalid: it was fail, and is quarantine\n");
    refused(
        &folder,
        &["--collection", "templates"],
        "caused by: the collections: it was templates, requests, machines, ",
    );

    let config = folder.read("larder.json");
    folder.write("larder.json", config.replace("strict.db", "other.db"));
    refused(&folder, &[], "caused by: the place of the target: it was sql in /");
    folder.write("larder.json", config.replacen("\"base_path\"", "\"cache_size\": 7, \"base_path\"", 1));
    refused(&folder, &[], "caused by: the place of the source: it was json in /");
    folder.write("larder.json", &config);

    // The same plugin with a word more in it.
    for name in ["json.wasm", "sql.wasm"] {
        let mut bytes = std::fs::read(plugins().join(name)).unwrap();
        if name == "sql.wasm" {
            bytes.extend([0, 2, 1, b'x']);
        }
        folder.write(&format!("others/{name}"), bytes);
    }
    let mut command = command(&folder, "json", "sql", &["--resume"]);
    command.env("LARDER_PLUGINS", folder.path().join("others"));
    let run = run_with(command, "").exits(2);
    assert!(run.stderr.contains("caused by: the sha256 of the target's plugin: it was "), "{run:#?}");

    // What may change: batches, workers, how fast.
    migrate(&folder, "json", "sql", &["--resume", "--no-backup", "--batch-size", "7", "--workers", "1"]).exits(0);
}

#[test]
fn a_source_that_changed_since_is_not_gone_on_with() {
    let folder = unfinished("sql");
    folder.larder_with(&["patch", "machines", "machine-000000900"], r#"{"status": "CHANGED"}"#).exits(0);
    let run = migrate(&folder, "json", "sql", &["--resume", "--no-backup"]).exits(1);
    let message =
        "error: the migration cannot go on: the source changed since it was begun\ncaused by: machines: 1000 ";
    assert!(run.stderr.contains(message), "{run:#?}");
    migrate(&folder, "json", "sql", &["--restart", "--no-backup"]).exits(0);
}

#[test]
fn a_damaged_state_is_refused_and_never_believed() {
    let folder = unfinished("sql");
    let path = folder.path().join(&kept(&folder, "sql", "state")[0]);
    let whole = std::fs::read(&path).unwrap();
    // Each byte is a test of the module's own; here the program is asked.
    for length in [0, 1, 18, 19, 60, 85, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        for more in ["--resume", "--no-backup"] {
            let run = migrate(&folder, "json", "sql", &[more]).exits(5);
            assert!(run.stderr.starts_with("error: the state of the migration ") && run.stderr.contains("is damaged"));
            assert!(run.stderr.contains("hint: --restart"), "{run:#?}");
        }
    }
    std::fs::write(&path, &whole).unwrap();
    migrate(&folder, "json", "sql", &["--resume", "--no-backup"]).exits(0);
}

#[test]
fn a_second_run_at_the_same_time_is_refused() {
    let folder = folder_for(&larder_samples::machines(1000, SEED), "sql");
    let mut first = Running::start(&folder, "json", "sql", SLOWLY);
    first.moved(40);
    for more in ["--no-backup", "--resume", "--restart"] {
        let run = migrate(&folder, "json", "sql", &[more]).exits(4);
        assert!(run.stderr.starts_with("error: another process is migrating `json` to `sql`\n"), "{run:#?}");
    }
    let (code, stderr, _) = first.end();
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn an_interrupt_saves_the_state_and_says_how_to_go_on() {
    for to in ["sql", "split"] {
        let folder = folder_for(&larder_samples::machines(1000, SEED), to);
        let mut running = Running::start(&folder, "json", to, SLOWLY);
        let seen = running.moved(300);
        running.interrupt();
        let (code, stderr, _) = running.end();
        assert_eq!(code, 130, "{stderr}");
        let error = crate::support::object(stderr.lines().last().unwrap());
        assert_eq!(error["kind"], "interrupted");
        assert!(error["hint"].as_str().unwrap().contains("--resume"), "{error:?}");

        let run = migrate(&folder, "json", to, &["--resume", "--no-backup", "--format", "json"]).exits(0);
        let report = report(&run);
        balanced(&report);
        // Nothing that had arrived is moved a second time.
        assert_eq!((sum(&report, "written"), sum(&report, "unchanged")), (1101, 0), "{to}: {seen} had arrived");
    }
}

#[test]
fn a_rate_is_kept() {
    let folder = folder_for(&larder_samples::machines(300, SEED), "split");
    let since = Instant::now();
    migrate(&folder, "json", "split", &["--no-backup", "--max-rate", "200"]).exits(0);
    // The last of 331 begin after those before them, a second's worth at once.
    assert!(since.elapsed() >= Duration::from_millis(650), "{:?}", since.elapsed());
}

#[test]
fn a_change_of_the_source_meanwhile_is_found_and_named() {
    let document = larder_samples::machines(1000, SEED);
    // Of files that were left alone for some seconds, their times tell whether they changed, and else their content does.
    for (from, to, are_left_alone) in [("json", "sql", false), ("json", "sql", true), ("sql", "split", false)] {
        let folder = folder_for(&document, "sql");
        if from == "sql" {
            migrate(&folder, "json", from, &["--no-backup"]).exits(0);
        }
        if are_left_alone {
            std::thread::sleep(Duration::from_secs(4));
        }
        let mut running = Running::start(&folder, from, to, SLOWLY);
        running.moved(100);
        folder
            .larder_with(&["patch", "templates", "template-000001", "--store", from], r#"{"name": "Renamed"}"#)
            .exits(0);
        let (code, stderr, _) = running.end();
        assert_eq!(code, 1, "{stderr}");
        let error = crate::support::object(stderr.lines().last().unwrap());
        assert_eq!(error["message"], "templates: the source changed while it was migrated");
        let causes = error["causes"].to_string();
        assert!(
            causes.contains("templates `template-000001`: different in `name`, `updated_at`, `version`"),
            "{causes}"
        );
        assert!(error["hint"].as_str().unwrap().contains("--restart"), "{error:?}");
        migrate(&folder, from, to, &["--restart", "--existing", "overwrite", "--no-backup"]).exits(0);
        folder.larder(&["verify", "--from", from, "--to", to]).exits(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_source_while_the_target_is_read_is_found() {
    let document = larder_samples::machines(100, SEED);
    for (from, to) in [("json", "sql"), ("sql", "split")] {
        let folder = folder_for(&document, "sql");
        if from == "sql" {
            migrate(&folder, "json", from, &["--no-backup"]).exits(0);
        }
        std::thread::sleep(Duration::from_secs(4));
        let host = folder.host();
        let (source, target) = (host.open(Some(from)).await.unwrap(), host.open(Some(to)).await.unwrap());
        let mut is_changed = false;
        let mut change = |event| {
            if let Event::Advanced { step: Step::Verify, .. } = event
                && !std::mem::replace(&mut is_changed, true)
            {
                let patch = ["patch", "templates", "template-000001", "--store", from];
                folder.larder_with(&patch, r#"{"name": "Renamed"}"#).exits(0);
            }
        };
        let error = migration::migrate(&source, &target, &Options::default(), &mut change).await.unwrap_err();
        assert_eq!(error.message, "templates: the source changed while it was migrated", "{error:?}");
        assert!(host.close().await.is_empty());
    }
}

#[test]
fn what_changed_between_validation_and_move_is_named() {
    // Most of the time goes by with the requests, before the machines are read.
    let document = json::parse_wrapping(larder_samples::machines(1000, SEED).as_bytes(), 2);
    let mut document = document.unwrap_or_else(|error| panic!("{error}"));
    document["machines"].as_object_mut().unwrap().retain(|id, _| id.as_str() <= "machine-000000050");
    let document = serde_json::to_string(&document).unwrap();
    let slowly = ["--no-backup", "--batch-size", "1", "--max-rate", "30"];
    // A run that goes on holds nothing of what it validated, and reads it again.
    let ended = |holds: bool, change: &dyn Fn(&Folder)| {
        let folder = folder_for(&document, "sql");
        let mut running = Running::start(&folder, "json", "sql", &slowly);
        running.moved(1);
        if !holds {
            running.interrupt();
            assert_eq!(running.end().0, 130);
            running = Running::start(&folder, "json", "sql", &[&slowly[..], &["--resume"]].concat());
            running.moved(1);
        }
        change(&folder);
        let (code, stderr, _) = running.end();
        assert_eq!(code, 1, "{stderr}");
        let error = crate::support::object(stderr.lines().last().unwrap());
        let report = crate::support::object(folder.read(&kept(&folder, "sql", "report-")[0]));
        (error, report["collections"][2]["source_changes"].clone())
    };

    for (holds, told) in [
        (true, "machines `machine-000000050`: different in `status`, `version`"),
        (false, "the target holds what the source holds now"),
    ] {
        let (error, changes) = ended(holds, &|folder| {
            folder.larder_with(&["patch", "machines", "machine-000000050"], r#"{"status": "STOPPED"}"#).exits(0);
        });
        assert_eq!(error["message"], "machines: the source changed while it was migrated");
        let causes = error["causes"].to_string();
        assert!(causes.contains(told), "{causes}");
        assert!(causes.contains("machines `machine-000000050`: changed since the validation"), "{causes}");
        assert_eq!((&changes["changed"], &changes["added"], &changes["removed"]), (&1.into(), &0.into(), &0.into()));
        assert_eq!(changes["listed"], serde_json::json!([{"key": "machine-000000050", "change": "changed"}]));
    }

    let (error, changes) = ended(false, &|folder| {
        let stored = folder.larder(&["get", "machines", "machine-000000001"]).exits(0).stdout;
        let stored = stored.replace("machine-000000001", "machine-new");
        folder.larder_with(&["save", "machines"], &stored).exits(0);
        for id in ["machine-000000002", "machine-000000003"] {
            folder.larder(&["delete", "machines", id]).exits(0);
        }
    });
    assert_eq!(error["message"], "machines: the source changed while it was read");
    let causes = error["causes"].to_string();
    assert!(causes.contains("50 entities at first, 49 now"), "{causes}");
    assert!(causes.contains("machines `machine-new`: added since the validation"), "{causes}");
    assert!(causes.contains("machines `machine-000000002`: removed since the validation"), "{causes}");
    assert_eq!((&changes["changed"], &changes["added"], &changes["removed"]), (&0.into(), &1.into(), &2.into()));
}

#[test]
fn a_change_of_the_target_meanwhile_is_found_and_named() {
    let folder = folder_for(&larder_samples::machines(1000, SEED), "sql");
    let mut running = Running::start(&folder, "json", "sql", SLOWLY);
    running.moved(200);
    folder.larder_with(&["patch", "templates", "template-000001", "--store", "sql"], r#"{"name": "Other"}"#).exits(0);
    let (code, stderr, _) = running.end();
    assert_eq!(code, 1, "{stderr}");
    let error = crate::support::object(stderr.lines().last().unwrap());
    assert_eq!(error["message"], "templates: the target differs from the source");
    assert!(error["causes"].to_string().contains("templates `template-000001`: different in `name`"), "{error:?}");
    // The report says so too.
    let report = crate::support::object(folder.read(&kept(&folder, "sql", "report-")[0]));
    assert_eq!(report["verified"], false);
    assert_eq!(report["collections"][0]["differences"]["listed"][0]["key"], "template-000001");
}

/// 300 machines, one of which lacks what strict tables require.
fn one_bad(position: usize) -> (Folder, String) {
    let document = json::parse_wrapping(larder_samples::machines(300, SEED).as_bytes(), 2);
    let mut document = document.unwrap_or_else(|error| panic!("{error}"));
    let machines = document["machines"].as_object_mut().unwrap();
    let id = machines.keys().nth(position).unwrap().clone();
    machines[&id].as_object_mut().unwrap().remove("status");
    (folder_for(&Value::Object(document).to_string(), "sql"), id)
}

#[test]
fn one_bad_entity_is_found_wherever_it_stands_and_nothing_is_written() {
    for position in [0, 150, 299] {
        let (folder, id) = one_bad(position);
        let run = migrate(&folder, "json", "sql", &["--no-backup"]).exits(1);
        assert!(
            run.stderr.starts_with("error: 1 entity breaks a rule of store `sql`; nothing was written\n"),
            "{run:#?}"
        );
        let rule = format!("caused by: machines.status is required: 1 entity, for example `{id}`\n");
        assert!(run.stderr.contains(&rule) && run.stderr.contains("--on-invalid quarantine"), "{run:#?}");
        assert!(!folder.has("strict.db") && kept(&folder, "sql", "state").is_empty());
    }
}

#[test]
fn one_bad_entity_in_quarantine_is_named_and_all_others_arrive() {
    for position in [0, 150, 299] {
        let (folder, id) = one_bad(position);
        let run = migrate(&folder, "json", "sql", &["--no-backup", "--on-invalid", "quarantine"]).exits(0);
        let left = format!("warning: left out: machines.status is required: 1 entity, for example `{id}`\n");
        assert!(run.stderr.contains(&left), "{run:#?}");
        assert!(
            run.stderr.contains("migrated 330 entities from `json` to `sql`, verified equal; 1 entity in quarantine: ")
        );
        assert_eq!(folder.larder(&["count", "machines", "--store", "sql"]).stdout, "299\n");

        let files = kept(&folder, "sql", "quarantine-");
        assert_eq!(files.len(), 1, "{files:?}");
        let text = folder.read(&files[0]);
        assert_eq!(text.lines().count(), 1);
        let line = crate::support::object(text.lines().next().unwrap());
        assert_eq!(
            (&line["collection"], &line["key"], &line["field"]),
            (&"machines".into(), &id.as_str().into(), &"status".into())
        );
        assert_eq!(line["rules"], serde_json::json!(["machines.status is required"]));
        let stored = folder.larder(&["get", "machines", &id]).exits(0).stdout;
        assert!(json::equal(&line["entity"], &Value::Object(crate::support::object(stored))));
        let report = crate::support::object(folder.read(&kept(&folder, "sql", "report-")[0]));
        balanced(&report);
        assert_eq!((sum(&report, "written"), sum(&report, "quarantined")), (330, 1));
    }
}

#[test]
fn what_refers_to_an_entity_in_quarantine_goes_there_too_and_stays_in_the_source() {
    let document = larder_samples::machines(2000, SEED).replacen("\"vm_type\"", "\"type\"", 1);
    let folder = folder_for(&document, "sql");
    let more = ["--on-invalid", "quarantine", "--format", "json", "--cleanup-source"];
    let report = report(&migrate(&folder, "json", "sql", &more).exits(0));
    balanced(&report);
    // The first of two templates, with all that was requested by it.
    let quarantined: Vec<u64> =
        report["collections"].as_array().unwrap().iter().map(|it| it["quarantined"].as_u64().unwrap()).collect();
    assert_eq!(quarantined, [1, 100, 1000]);
    let left = folder.larder(&["export"]).exits(0).stdout.lines().count();
    assert_eq!(left, 1101, "what was left out is still there, and nothing else");
    let lines: PathBuf = report["quarantine"].as_str().unwrap().into();
    assert_eq!(std::fs::read_to_string(lines).unwrap().lines().count(), left);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_target_knows_to_be_wrong_ends_it_or_goes_into_quarantine() {
    let folder = folder_for(&larder_samples::machines(1000, SEED), "sql");
    folder.larder(&["stores", "prepare", "--store", "sql"]).exits(0);
    let trigger = "CREATE TRIGGER moderation BEFORE INSERT ON machines WHEN new.machine_id LIKE '%77' \
                   BEGIN SELECT RAISE(ABORT, 'no such number'); END";
    folder.sqlite("strict.db").await.execute(trigger).await.unwrap();
    let run = migrate(&folder, "json", "sql", &["--no-backup"]).exits(1);
    assert!(run.stderr.contains("store `sql` refused machines `machine-0000") && run.stderr.contains("no such number"));

    let quarantine = ["--on-invalid", "quarantine"];
    let mut running = Running::start(&folder, "json", "sql", &[SLOWLY, &quarantine, &["--restart"]].concat());
    running.moved(500);
    running.kill();
    let run =
        migrate(&folder, "json", "sql", &[&quarantine[..], &["--no-backup", "--resume", "--format=json"]].concat());
    let report = report(&run.exits(0));
    balanced(&report);
    assert_eq!((&report["verified"], sum(&report, "quarantined")), (&true.into(), 10));
    assert_eq!(folder.larder(&["count", "machines", "--store", "sql"]).stdout, "990\n");
    let lines = std::fs::read_to_string(report["quarantine"].as_str().unwrap()).unwrap();
    let mut keys: Vec<Value> = lines.lines().map(|line| crate::support::object(line)["key"].clone()).collect();
    keys.sort_by_key(ToString::to_string);
    let expected: Vec<Value> = (0..10).map(|hundred| format!("machine-{:09}", hundred * 100 + 77).into()).collect();
    assert_eq!(keys, expected);
    assert!(lines.lines().all(|line| crate::support::object(line)["rules"][0].to_string().contains("no such number")));
}

#[test]
fn a_source_that_is_half_cleaned_up_is_gone_on_with() {
    // A request without a status, to which ten machines refer.
    let document = larder_samples::machines(20_000, SEED).replacen("\"status\":\"RUNNING\",", "", 1);
    let folder = folder_for(&document, "sql");
    let more = ["--no-backup", "--cleanup-source", "--on-invalid", "quarantine"];
    let mut running = Running::start(&folder, "json", "sql", &more);
    running.advanced("clean up", 1);
    running.kill();
    assert!(!kept(&folder, "sql", "state").is_empty(), "it was killed after the first of several pages");
    let left = || folder.larder(&["export"]).exits(0).stdout.lines().count();
    assert!(left() < 22_020, "some were removed");
    // Not asked to clean up, it would leave the rest; asked to, it removes all but what is nowhere else.
    let more = ["--no-backup", "--cleanup-source", "--on-invalid", "quarantine", "--resume", "--format", "json"];
    let report = report(&migrate(&folder, "json", "sql", &more).exits(0));
    balanced(&report);
    assert_eq!((&report["verified"], sum(&report, "quarantined"), left()), (&true.into(), 11, 11));
    assert_eq!(folder.larder(&["count", "machines", "--store", "sql"]).stdout, "19990\n");
}

#[test]
fn a_dry_run_tells_how_each_member_will_be_kept() {
    let document = r#"{"templates": {
        "a": {"template_id": "a", "max_number": 1, "name": "A", "colour": "red"},
        "b": {"template_id": "b", "max_number": "many", "name": null}
    }}"#;
    let folder = folder_for(document, "relaxed");
    let run = migrate(&folder, "json", "relaxed", &["--dry-run"]).exits(0);
    let rows: Vec<String> =
        run.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for row in [
        "templates.`colour` not declared 1 `a`",
        "templates.`max_number` as declared 1 `a`",
        "templates.`max_number` of another type than declared 1 `b`",
        "templates.`name` null 1 `b`",
        // Either may be the first.
        "templates.`template_id` as declared 2 `",
    ] {
        assert!(rows.iter().any(|it| it.starts_with(row)), "{row} is not in {rows:#?}");
    }
    assert!(!folder.has(".larder"), "a dry run keeps no state");
    assert!(folder.has(SOURCE));
}

#[test]
#[cfg(target_os = "linux")]
fn it_is_scheduled_as_a_batch_job() {
    /// SCHED_BATCH, as proc(5) has it: the 41st field, and the 39th behind the name.
    const BATCH: &str = "3";
    let folder = folder_for(&larder_samples::machines(1000, SEED), "sql");
    let mut running = Running::start(&folder, "json", "sql", SLOWLY);
    running.moved(100);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap();
    // A thread may end meanwhile.
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let policies: Vec<String> = stats
        .map(|stat| stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(38).unwrap().to_owned())
        .collect();
    running.kill();
    assert!(policies.len() > 1 && policies.iter().all(|policy| policy == BATCH), "{policies:?}");
}

#[test]
fn lines_tell_how_far_it_is_where_nobody_watches() {
    let folder = folder_for(&larder_samples::machines(700, SEED), "split");
    let more = ["--no-backup", "--max-rate", "100", "--batch-size", "10"];
    let run = migrate(&folder, "json", "split", &more).exits(0);
    let line = run.stderr.lines().find(|line| line.contains(" s left")).unwrap_or_else(|| panic!("{run:#?}"));
    assert!(line.starts_with("move      machines: ") && line.contains(" of 700, "), "{line}");
}

#[test]
fn a_bar_tells_how_far_it_is_on_a_terminal() {
    let folder = folder_for(&larder_samples::machines(700, SEED), "split");
    let migrating = command(&folder, "json", "split", &["--no-backup", "--max-rate", "500", "--batch-size", "10"]);
    // Gives what it runs a terminal, and copies what is drawn there.
    let mut script = Command::new("script");
    let words = std::iter::once(migrating.get_program()).chain(migrating.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    script.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]).current_dir(folder.path());
    for (name, value) in migrating.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    // Nothing is drawn on a terminal of which nothing is known.
    script.env("TERM", "xterm");
    let run = run_with(script, "").exits(0);
    let drawn: Vec<&str> = run.stdout.split(['\r', '\n']).collect();
    let bar = drawn.iter().find(|line| line.contains("move") && line.contains("machines") && line.contains("/700 "));
    let bar = bar.unwrap_or_else(|| panic!("{run:#?}"));
    assert!(bar.contains("/s ") && bar.contains(" left"), "{bar}");
    assert!(run.stdout.contains("migrated 771 entities from `json` to `split`, verified equal"), "{run:#?}");
}
