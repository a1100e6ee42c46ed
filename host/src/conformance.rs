//! The contract's promises as a suite that anybody can run against any component: `larder plugins test`, or [`run`].
//!
//! One list of cases ([`conformance_cases!`](crate::conformance_cases)), each a promise in the words of its name. A case gets a place of its own, opens it as
//! an application would, and never looks at what kind of strategy it has before it. What a plugin declares is held
//! against what it does, both ways: a feature that is not declared has to answer `unsupported`.
//!
//! Each case runs twice: on instances that are kept, as a host uses them, and on a fresh instance for each call, so that
//! nothing may hang on what an instance remembers. What cannot be run is reported as that, and never as passed.
//!
//! What becomes of a store where something goes wrong is tried by [`faults`].

mod bulk;
mod check;
mod entities;
pub mod faults;
mod isolation;
mod place;
mod queries;
mod reads;
mod stores;
mod transactions;
mod values;
mod writes;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::plugin::Plugin;
use crate::plugin::engine::Engine;
use check::{Checked, Stop};
use place::Place;

/// A case that takes longer is taken for one that hangs.
const CASE_DEADLINE: Duration = Duration::from_secs(300);

/// Calls a macro with every case: what it is about, as names of functions of the contract's `repository` interface, and
/// its name with the module where it stands. Tests make one test of each.
#[macro_export]
macro_rules! conformance_cases {
    ($callback:ident $($arguments:tt)*) => {
        $callback! { $($arguments)*
            stores::a_plugin_describes_itself_consistently ["describe", "open"];
            stores::a_store_that_is_not_there_yet_opens_and_is_not_made_by_reading ["open", "prepare", "check", "stored-collections"];
            stores::a_second_handle_sees_the_writes_of_the_first ["open", "get", "apply"];
            stores::an_unknown_collection_is_invalid_and_never_empty ["get", "find", "count", "scan", "apply", "load"];
            stores::what_open_says_of_rules_is_what_writes_meet ["open", "apply"];
            stores::an_entity_that_keeps_the_rules_breaks_none ["validate"];
            stores::a_store_that_was_closed_has_everything_when_it_is_opened_again ["close", "flush", "get"];
            stores::a_restore_point_brings_back_what_it_holds_and_an_unknown_one_nothing ["restore-points", "restore"];
            writes::a_save_creates_an_entity_or_replaces_the_whole_of_it ["apply", "get"];
            writes::a_save_takes_effect_only_where_its_expectation_holds ["apply"];
            writes::an_update_needs_a_stored_entity_of_the_expected_version ["apply"];
            writes::an_update_takes_effect_only_where_its_condition_holds ["apply", "get"];
            writes::a_patch_merges_into_what_is_stored ["apply", "get"];
            writes::a_delete_says_whether_the_entity_was_there ["apply"];
            writes::versions_start_at_one_or_where_the_body_says_and_then_count ["apply", "load"];
            writes::times_are_stamped_once_for_creation_and_each_time_for_updates ["apply"];
            writes::machines_get_no_time_of_update_unless_they_have_one ["apply"];
            writes::a_collection_names_what_is_stamped ["apply", "get"];
            writes::an_atomic_apply_is_all_or_nothing_and_names_the_write_that_failed ["apply"];
            writes::an_atomic_apply_spans_collections_and_refuses_one_entity_twice ["apply"];
            writes::an_atomic_apply_beyond_its_bound_is_refused_whole ["apply"];
            writes::an_atomic_apply_that_is_given_up_is_whole_or_nothing ["apply", "get"];
            writes::an_apply_that_is_not_atomic_answers_each_write ["apply"];
            writes::writers_at_once_lose_no_update ["apply", "get"];
            reads::get_answers_in_the_order_asked_for_with_gaps_for_what_is_absent ["get"];
            reads::ids_that_look_alike_are_different_entities ["get", "apply"];
            reads::ids_are_bounded_and_printable ["get", "apply"];
            reads::a_scan_has_every_entity_once_in_any_number_of_segments ["scan"];
            values::bodies_that_are_no_entities_are_refused_and_nothing_is_stored ["apply"];
            values::a_body_larger_than_the_strategy_takes_is_refused ["apply"];
            values::awkward_values_come_back_as_they_were_written ["apply", "get", "find", "scan"];
            values::awkward_values_are_loaded_as_they_are ["load", "flush", "scan"];
            queries::filters_hold_for_what_the_contract_says ["find", "count"];
            queries::answers_are_sorted_across_types_and_limited ["find"];
            queries::an_answer_of_many_pages_has_every_entity_once ["find"];
            queries::pages_have_every_entity_once_that_nobody_wrote_meanwhile ["find"];
            queries::an_index_that_is_named_is_used_and_an_unknown_one_refused ["find"];
            bulk::load_stamps_nothing_and_says_what_became_of_each_entity ["load", "flush"];
            bulk::load_refuses_what_is_no_entity_and_stores_the_others ["load", "flush"];
            bulk::what_was_prepared_for_a_load_takes_it_and_is_completed_behind_it ["prepare-for-load", "load", "prepare"];
            bulk::writing_nothing_is_no_error ["flush", "load", "apply"];
            transactions::a_transaction_sees_its_own_writes_and_happens_as_one_or_not_at_all ["begin", "transaction.get", "transaction.find", "transaction.apply", "transaction.commit", "transaction.rollback"];
            transactions::a_transaction_expects_as_any_write_does ["begin", "transaction.apply", "transaction.rollback"];
            transactions::every_isolation_can_be_asked_for_or_is_refused ["begin", "transaction.commit"];
            isolation::a_read_only_transaction_writes_nothing ["begin", "transaction.apply"];
            isolation::a_transaction_that_is_left_holds_nothing ["begin", "transaction.apply"];
            isolation::no_update_is_lost ["transaction.get", "transaction.apply", "transaction.commit"];
            isolation::nothing_is_read_that_was_not_committed ["transaction.get", "transaction.rollback"];
            isolation::what_was_read_is_read_again ["transaction.get"];
            isolation::reads_of_several_entities_are_of_one_moment ["transaction.get"];
            isolation::what_was_found_is_found_again ["transaction.find"];
            isolation::decisions_do_not_cross ["transaction.get", "transaction.apply"];
            isolation::a_read_only_transaction_sees_what_some_order_explains ["transaction.get"];
        }
    };
}

/// What a case is made of.
struct Case {
    name: &'static str,
    about: &'static [&'static str],
    body: fn(Place) -> Pin<Box<dyn Future<Output = Checked> + Send>>,
}

macro_rules! cases {
    ($($module:ident::$name:ident [$($function:literal),*];)*) => {
        &[$(Case {
            name: stringify!($name),
            about: &[$($function),*],
            body: |place| Box::pin($module::$name(place)),
        }),*]
    };
}

/// Every case, in the order in which they run.
const CASES: &[Case] = conformance_cases!(cases);

/// The cases' names, in the order in which they run.
pub fn names() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.name)
}

/// How the host treats instances while a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instances {
    /// They are kept and used again.
    Warm,
    /// Every call gets one of its own, as far as what was written is durable.
    Fresh,
}

impl Instances {
    /// Both, in the order in which they run.
    pub const ALL: [Instances; 2] = [Instances::Warm, Instances::Fresh];

    /// `warm` or `fresh`.
    pub fn name(self) -> &'static str {
        match self {
            Instances::Warm => "warm",
            Instances::Fresh => "fresh",
        }
    }
}

/// What a case came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The promise was kept.
    Passed,
    /// The promise is about a feature that the plugin does not declare, and it answers `unsupported`, as it should.
    Undeclared {
        /// The feature's name in the contract.
        feature: &'static str,
    },
    /// It was not.
    Failed {
        /// What was found in place of what.
        reason: String,
        /// The line of the suite that looked, where there is one.
        at: Option<String>,
    },
    /// It says nothing of the plugin, good or bad.
    NotRun {
        /// Why.
        reason: String,
    },
}

impl Verdict {
    /// `passed`, `undeclared`, `failed` or `not-run`.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Undeclared { .. } => "undeclared",
            Verdict::Failed { .. } => "failed",
            Verdict::NotRun { .. } => "not-run",
        }
    }
}

/// One run of one case.
#[derive(Debug, Clone)]
pub struct CaseReport {
    /// The promise.
    pub case: &'static str,
    /// How instances were treated.
    pub instances: Instances,
    /// What it came to.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// What is tested: a component, and the store that it is given.
#[derive(Debug, Clone)]
pub struct Subject {
    plugin: Plugin,
    plugins_directory: PathBuf,
    /// Of all its hosts: what tells them apart is their instances.
    engine: Engine,
    store: Map<String, Value>,
    /// Cases have no place of their own: the store does not say `${SCRATCH}` or `${CASE}`.
    is_shared: bool,
}

impl Subject {
    /// Loads the component in the file `plugin`. `store` is an entry as in `storage.stores`, without `strategy`;
    /// in its strings `${SCRATCH}` is an empty folder and `${CASE}` a word that no other case has. Without `store`
    /// the plugin gets what it wants below the scratch folder.
    ///
    /// # Errors
    /// `plugin-refused` for a file that is no component of this contract, `configuration` for a store that is none.
    pub async fn load(plugin: &Path, store: Option<Map<String, Value>>) -> Result<Subject> {
        // A name without a folder has an empty parent.
        let parent = plugin.parent().filter(|parent| !parent.as_os_str().is_empty());
        let plugins_directory = parent.unwrap_or(Path::new(".")).to_path_buf();
        let config = Config::from_text(r#"{"storage": {"strategy": "none"}}"#, Path::new("."))?;
        let host = Host::new(config, Some(&plugins_directory))?;
        let plugin = host.describe(plugin).await?;
        let store = store.unwrap_or_else(|| config::trial::store(&plugin.name, &plugin.wants));
        if store.contains_key("strategy") {
            return Err(Error::config("the store to test with says which strategy it is of")
                .hint("leave `strategy` out: the file says it"));
        }
        let text = Value::Object(store.clone()).to_string();
        let has = |variable: &str| text.contains(&format!("${{{variable}}}"));
        let is_shared =
            reaches_out(&plugin, &store) && !has(config::trial::SCRATCH_VARIABLE) && !has(config::trial::CASE_VARIABLE);
        Ok(Subject { plugin, plugins_directory, engine: host.engine().clone(), store, is_shared })
    }

    /// Whether all that it keeps is in the memory of an instance.
    fn is_in_memory(&self) -> bool {
        !reaches_out(&self.plugin, &self.store)
    }

    /// The component.
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }
}

/// Whether a plugin is lent something that it can keep entities in.
fn reaches_out(plugin: &Plugin, store: &Map<String, Value>) -> bool {
    !plugin.wants.is_empty() || store.contains_key("grants")
}

/// The cases whose names contain one of the words, all of them without words.
fn selected<'a>(words: &'a [String]) -> impl Iterator<Item = &'static Case> + 'a {
    CASES.iter().filter(|case| words.is_empty() || words.iter().any(|word| case.name.contains(word.as_str())))
}

/// Runs the cases whose names contain one of `words` (all of them without words) on warm and then on fresh instances,
/// and tells of each as it ends.
///
/// # Errors
/// Only where nothing can be said of the plugin: no case has such a name, the store does not open, or it is one that cases
/// share and holds entities already, which the suite would have to delete. What fails is in the reports.
pub async fn run(subject: &Subject, words: &[String], mut on_end: impl FnMut(&CaseReport)) -> Result<Vec<CaseReport>> {
    if let Some(word) = words.iter().find(|word| !CASES.iter().any(|case| case.name.contains(word.as_str()))) {
        return Err(Error::usage(format!("no case has `{word}` in its name"))
            .hint("without --case all are run, and their names printed"));
    }
    place::check_usable(subject).await?;
    let mut reports = Vec::new();
    for instances in Instances::ALL {
        for case in selected(words) {
            let report = run_one(subject, case, instances).await;
            on_end(&report);
            reports.push(report);
        }
    }
    Ok(reports)
}

/// Runs the case of that name.
///
/// # Panics
/// Where there is no such case.
pub async fn run_case(subject: &Subject, name: &str, instances: Instances) -> CaseReport {
    let case = CASES.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("there is no case `{name}`"));
    run_one(subject, case, instances).await
}

async fn run_one(subject: &Subject, case: &'static Case, instances: Instances) -> CaseReport {
    let started = Instant::now();
    let verdict = match verdict_of(subject, case, instances).await {
        Ok(()) => Verdict::Passed,
        Err(Stop::Undeclared(feature)) => Verdict::Undeclared { feature },
        Err(Stop::Failed { reason, at }) => Verdict::Failed { reason, at },
        Err(Stop::NotRun(reason)) => Verdict::NotRun { reason },
    };
    CaseReport { case: case.name, instances, verdict, took: started.elapsed() }
}

async fn verdict_of(subject: &Subject, case: &'static Case, instances: Instances) -> Checked {
    if instances == Instances::Fresh && subject.is_in_memory() {
        return Err(Stop::NotRun("the plugin is lent no capability, so all it has is in its memory".into()));
    }
    let place = Place::new(subject, instances)?;
    // A task of its own: a fault of the suite must not end it.
    let body = tokio::spawn(tokio::time::timeout(CASE_DEADLINE, (case.body)(place.clone())));
    let ended = match body.await {
        Ok(Ok(ended)) => ended,
        Ok(Err(_)) => Err(Stop::failed(format!("it did not end within {} s", CASE_DEADLINE.as_secs()))),
        Err(fault) => Err(Stop::failed(format!("the case broke off: {fault}"))),
    };
    let left = place.leave().await;
    ended?;
    left?;
    // So that the list of what is tested cannot lie.
    match case.about.iter().find(|function| !place.was_called(function)) {
        Some(function) => Err(Stop::failed(format!("the case is about `{function}` and never called it"))),
        None => Ok(()),
    }
}
