//! What becomes of a store where anything goes wrong: `larder plugins test --faults`, or [`run`].
//!
//! A strategy reaches the world through its calls to the host alone. So a script of operations is run once to count those
//! calls, and then again for each call and each way in which it can go wrong ([`Fault`]), each time on an empty store. Nothing
//! is sampled, unless somebody asks for less.
//!
//! After the fault the store is looked at by whoever opens it anew. What was acknowledged is there; what was refused has not
//! happened; what has an unknown outcome has happened as a whole or not at all; nothing else has changed, in whatever way
//! it is read. Locks are free for others, and the operation does what it should when it is done again, on the
//! instance that met the fault too. The errors say what is so. Then the script goes on.

mod killed;
mod scenario;

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use larder_model::{Expectation, json};
use serde_json::Value;

use super::check::{Checked, Stop, ensure};
use super::place::{self, Place};
use super::{Subject, Verdict};
use crate::capability::faults::Faults;
use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::repository::{Repository, Scrutiny};
use scenario::{Answer, Looked, Part, SCRIPT, State, Step, check_content, content};

pub use crate::capability::faults::Fault;
pub use killed::{Task, run_until_killed};

/// A trial that takes longer is taken for one that hangs.
const TRIAL_DEADLINE: Duration = Duration::from_secs(120);

/// One fault at one call.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The operation in which the call is made.
    pub operation: &'static str,
    /// The number of the call, from 1.
    pub call: usize,
    /// How many calls there are.
    pub calls: usize,
    /// The call's name in the contract, as `files.append`.
    pub function: &'static str,
    /// What it is about: a path, a statement, a collection. One line, bounded, safe to print.
    pub about: String,
    /// How it goes wrong.
    pub fault: Fault,
}

/// What a trial came to.
#[derive(Debug, Clone)]
pub struct TrialReport {
    /// What was tried.
    pub trial: Trial,
    /// `Passed`, `Failed` with the promise that was broken, or `NotRun`.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// A call of a plugin's to the host.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name in the contract, as `files.append`.
    pub function: &'static str,
    /// What it is about. One line, bounded, safe to print.
    pub about: String,
    /// How it can go wrong.
    pub faults: Vec<Fault>,
}

/// The calls that the plugins of one host make.
#[derive(Debug)]
pub struct Calls(Faults);

impl Calls {
    /// Has one call of a host's plugins go wrong, counted from 0, or none. For other scripts than that of [`run`].
    pub fn of(host: Host, fault: Option<(usize, Fault)>) -> (Host, Calls) {
        let faults = fault.map_or_else(Faults::default, |(call, fault)| Faults::at(call, fault));
        let scrutiny = Scrutiny { faults: Some(faults.clone()), ..Scrutiny::default() };
        (host.under(scrutiny), Calls(faults))
    }

    /// Those so far.
    pub fn made(&self) -> Vec<Call> {
        let calls = self.0.calls().into_iter();
        calls.map(|call| Call { faults: call.faults().collect(), function: call.function, about: call.about }).collect()
    }

    /// Whether the call that was to go wrong was made.
    pub fn one_went_wrong(&self) -> bool {
        self.0.have_struck()
    }
}

/// Which trials are run, and with what.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Only operations with one of these in their names; all without any.
    pub words: &'a [String],
    /// Of all trials, every so many; 1 for all.
    pub every: usize,
    /// The program `larder`, which is run as a host that is killed.
    pub program: &'a Path,
}

/// The operations' names, in the order of the script.
pub fn operations() -> impl Iterator<Item = &'static str> {
    SCRIPT.iter().map(|step| step.name)
}

/// Runs the script without a fault, and lists what can be tried.
///
/// # Errors
/// `differs` where the script does not do what it should though nothing goes wrong; otherwise as [`super::run`].
pub async fn trials(subject: &Subject, words: &[String]) -> Result<Vec<Trial>> {
    if let Some(word) = words.iter().find(|word| !operations().any(|name| name.contains(word.as_str()))) {
        return Err(Error::usage(format!("no operation has `{word}` in its name"))
            .hint("without --case all are tried; --faults --list prints their names"));
    }
    place::check_usable(subject).await?;
    // Whoever calls nobody is let down by nobody.
    if subject.plugin.wants.is_empty() {
        return Ok(Vec::new());
    }
    let faults = Faults::default();
    if let Err(Stop::Failed { reason, .. } | Stop::NotRun(reason)) = in_time(subject, None, &faults).await {
        let message = format!("plugin `{}` does not keep the contract though nothing goes wrong", subject.plugin.name);
        return Err(Error::new(Kind::Differs, message).caused_by(reason).hint("run the suite without --faults first"));
    }
    let calls = faults.calls();
    let count = calls.len();
    let is_wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let trials = calls.into_iter().enumerate().flat_map(|(number, call)| {
        let operation = SCRIPT[call.operation].name;
        let faults: Vec<Fault> = call.faults().filter(|_| is_wanted(operation)).collect();
        faults.into_iter().map(move |fault| Trial {
            operation,
            call: number + 1,
            calls: count,
            function: call.function,
            about: call.about.clone(),
            fault,
        })
    });
    Ok(trials.collect())
}

/// Tries every fault at every call of the script, and tells of each as it ends, in order.
///
/// # Errors
/// As [`trials`]. What fails is in the reports.
pub async fn run(
    subject: &Subject,
    options: &Options<'_>,
    mut on_end: impl FnMut(&TrialReport),
) -> Result<Vec<TrialReport>> {
    let trials = trials(subject, options.words).await?;
    let chosen = trials.into_iter().step_by(options.every.max(1));
    // Those that share a store take turns.
    let side_by_side = match subject.is_shared {
        true => 1,
        false => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let mut running = futures_util::stream::iter(chosen)
        .map(|trial| run_trial(subject, trial, options.program))
        .buffered(side_by_side);
    let mut reports = Vec::new();
    while let Some(report) = running.next().await {
        on_end(&report);
        reports.push(report);
    }
    Ok(reports)
}

/// Runs one trial. `program` is the program `larder`.
pub async fn run_trial(subject: &Subject, trial: Trial, program: &Path) -> TrialReport {
    let started = Instant::now();
    let faults = Faults::at(trial.call - 1, trial.fault);
    let ended = match trial.fault.kills() {
        true => in_time(subject, Some((trial.call - 1, trial.fault, program)), &faults).await,
        false => in_time(subject, None, &faults).await.and_then(|()| {
            let missed =
                || Stop::NotRun("the call was not made again: the plugin's calls are not always the same".into());
            if faults.have_struck() { Ok(()) } else { Err(missed()) }
        }),
    };
    let verdict = match ended {
        Ok(()) => Verdict::Passed,
        Err(Stop::Undeclared(feature)) => Verdict::Undeclared { feature },
        Err(Stop::Failed { reason, at }) => Verdict::Failed { reason, at },
        Err(Stop::NotRun(reason)) => Verdict::NotRun { reason },
    };
    TrialReport { trial, verdict, took: started.elapsed() }
}

/// A trial on a store of its own, with an end.
async fn in_time(subject: &Subject, kill: Option<(usize, Fault, &Path)>, faults: &Faults) -> Checked {
    let place = Place::for_trial(subject)?;
    let (subject, at, faults) = (subject.clone(), place.clone(), faults.clone());
    let kill = kill.map(|(call, fault, program)| (call, fault, program.to_path_buf()));
    // A task of its own: a fault of the suite must not end it.
    let body = tokio::spawn(tokio::time::timeout(TRIAL_DEADLINE, async move {
        let client = Client { place: at, faults, repository: None, state: State::new() };
        match kill {
            None => client.run_from(0).await,
            Some((call, fault, program)) => {
                let task = Task::new(&subject, &client.place, call, fault);
                let died = killed::run(program, subject.plugin.path.clone(), task).await?;
                client.faults.end();
                client.go_on_after(died).await
            }
        }
    }));
    let ended = match body.await {
        Ok(Ok(ended)) => ended,
        Ok(Err(_)) => Err(Stop::failed(format!("it did not end within {} s", TRIAL_DEADLINE.as_secs()))),
        Err(fault) => Err(Stop::failed(format!("the trial broke off: {fault}"))),
    };
    let left = place.leave().await;
    ended.and(left)
}

/// Who uses the store, and what must be stored.
struct Client {
    place: Place,
    faults: Faults,
    repository: Option<Repository>,
    state: State,
}

impl Client {
    /// The handle whose calls go wrong.
    async fn repository(&mut self) -> Result<Repository> {
        if self.repository.is_none() {
            self.repository = Some(self.place.open_with(&self.faults).await?);
        }
        Ok(self.repository.clone().expect("it was just opened"))
    }

    fn parts(&self, step: &Step, round: u32) -> Checked<Vec<Part>> {
        step.parts(round, &self.state, &self.place.collections()?)
    }

    /// Does the script from an operation on.
    async fn run_from(mut self, first: usize) -> Checked {
        let features = self.place.features();
        for (number, step) in SCRIPT.iter().enumerate().skip(first).filter(|(_, step)| step.is_declared(features)) {
            self.step(number, step).await.map_err(|stop| in_operation(step, stop))?;
        }
        self.faults.end();
        self.repository = None;
        let seen = self.seen_by_another().await?;
        check_content(&seen, &self.state)
    }

    async fn step(&mut self, number: usize, step: &Step) -> Checked {
        self.faults.begin(number);
        let struck_before = self.faults.have_struck();
        // Of everything that is written here it can be told where it comes from.
        let round = 10 * number as u32;
        let parts = self.parts(step, round)?;
        let answers = match self.repository().await {
            Ok(repository) => step.perform(&repository, round, &self.state, || {}).await?,
            // It was not even begun.
            Err(error) => parts.iter().map(|_| Answer::Refused(error.clone())).collect(),
        };
        ensure!(answers.len() == parts.len(), "{} parts have {} answers", parts.len(), answers.len());
        if struck_before || !self.faults.have_struck() {
            for (part, answer) in parts.iter().zip(&answers) {
                answer.check_as_expected(part)?;
                part.apply(&mut self.state);
            }
            return Ok(());
        }
        for (part, answer) in parts.iter().zip(&answers) {
            answer.check_honest(part)?;
        }
        self.settle(&parts, &answers).await?;
        if let Some(repository) = &self.repository {
            let found = read(repository, "the handle that met the fault cannot read").await?;
            check_content(&found, &self.state).map_err(|stop| told("the handle that met the fault sees", stop))?;
        }
        self.repeat(step, round + 1).await
    }

    /// Goes on after a host that was killed, as whoever opens the store next.
    async fn go_on_after(mut self, died: killed::Died) -> Checked {
        let features = self.place.features();
        let declared = || SCRIPT.iter().enumerate().filter(|(_, step)| step.is_declared(features));
        for (number, step) in declared().take(died.done) {
            for part in self.parts(step, 10 * number as u32)? {
                part.apply(&mut self.state);
            }
        }
        let Some((number, step)) = declared().nth(died.done) else {
            return Err(Stop::NotRun("the script was done before the call came".into()));
        };
        let round = 10 * number as u32;
        let parts = self.parts(step, round)?;
        let is_at_its_end = died.was_ending || !step.takes_effect_at_its_end();
        let answers: Vec<Answer> = parts.iter().map(|part| Answer::never_came(part, is_at_its_end)).collect();
        let settled = self.settle(&parts, &answers).await;
        settled.map_err(|stop| in_operation(step, stop))?;
        self.repeat(step, round + 1).await.map_err(|stop| in_operation(step, stop))?;
        self.run_from(number + 1).await
    }

    /// Finds out what has happened, for somebody who opens the store now: that it is what the answers allow, that nothing
    /// else has changed, and that others can write.
    async fn settle(&mut self, parts: &[Part], answers: &[Answer]) -> Checked {
        let seen = self.seen_by_another().await?;
        for (part, answer) in parts.iter().zip(answers) {
            let has_happened = part.changes.first().is_some_and(|(key, after)| match (seen.get(key), after) {
                (Some(seen), Some(after)) => json::equal_objects(seen, after),
                (None, None) => true,
                _ => false,
            });
            let changes_something = part.changes.iter().any(|(key, after)| self.state.get(key) != after.as_ref());
            match answer {
                Answer::Done => part.apply(&mut self.state),
                Answer::Unknown(_) if has_happened => part.apply(&mut self.state),
                Answer::Refused(error) if has_happened && changes_something => {
                    return Err(Stop::failed(format!(
                        "it was answered with `{}` and retry `{}`, and has happened",
                        error.kind.name(),
                        error.retry.name()
                    )));
                }
                Answer::Refused(_) | Answer::Unknown(_) => {}
            }
        }
        let is_acknowledged = answers.iter().all(|answer| matches!(answer, Answer::Done));
        let when = if is_acknowledged { "though it was acknowledged" } else { "after an error" };
        check_content(&seen, &self.state).map_err(|stop| told(when, stop))?;

        let other = self.place.open().await.map_err(|stop| told("others cannot open the store", stop))?;
        let findings = other.check(true).await.map_err(|error| told("check", error.into()))?;
        for property in ["reachable", "readable", "writable"] {
            ensure!(findings.get(property) == Some(&Value::Bool(true)), "check does not say that it is {property}");
        }
        for finding in findings.get("findings").and_then(Value::as_array).into_iter().flatten() {
            ensure!(finding["level"] != "error", "check finds an error: {finding}");
        }
        let body = br#"{"id":"other","label":"of somebody else"}"#;
        let saved = other.save("things", body, Expectation::Any).await;
        let (id, outcome) = saved.map_err(|error| told("others cannot write", error.into()))?;
        let mut stored = json::parse_object(body)?;
        stored.insert("revision".into(), outcome.version.into());
        self.state.insert(("things".into(), id), stored);
        let closed = other.close().await;
        closed.map_err(|error| told("others cannot close the store", error.into()))
    }

    /// What somebody sees who opens the store now.
    async fn seen_by_another(&self) -> Checked<State> {
        let other = self.place.open().await.map_err(|stop| told("others cannot open the store", stop))?;
        read(&other, "others cannot read").await
    }

    /// The operation again, now that nothing goes wrong.
    async fn repeat(&mut self, step: &Step, round: u32) -> Checked {
        let parts = self.parts(step, round)?;
        let repository = self.repository().await?;
        let answers = step.perform(&repository, round, &self.state, || {}).await;
        for (part, answer) in parts.iter().zip(&answers.map_err(|stop| told("done again", stop))?) {
            answer.check_as_expected(part).map_err(|stop| told("done again", stop))?;
            part.apply(&mut self.state);
        }
        let found = read(&repository, "after it was done again").await?;
        check_content(&found, &self.state).map_err(|stop| told("after it was done again", stop))
    }
}

async fn read(repository: &Repository, who: &str) -> Checked<State> {
    content(repository).await.map_err(|looked| match looked {
        Looked::Failed(error) => told(who, error.into()),
        Looked::Wrong(stop) => told(who, stop),
    })
}

/// The same, with what it is about before it.
fn told(what: &str, stop: Stop) -> Stop {
    match stop {
        Stop::Failed { reason, at } => Stop::Failed { reason: format!("{what}: {reason}"), at },
        other => other,
    }
}

/// A failure that shows in a later operation says in which.
fn in_operation(step: &Step, stop: Stop) -> Stop {
    told(&format!("in `{}`", step.name), stop)
}
