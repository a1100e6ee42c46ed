//! A host that is killed: a process of its own, which does the script up to a call and is killed there, as by SIGKILL.
//!
//! The one who kills it ([`run`]) is told of each operation that was acknowledged, as soon as it was. At its call
//! the process says so and does nothing more, so that what follows is the work of the operating system alone.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Map, Value, json};

use super::scenario::{SCRIPT, State};
use super::{Fault, in_operation};
use crate::capability::faults::Faults;
use crate::conformance::Subject;
use crate::conformance::check::{Checked, Stop};
use crate::conformance::place::Place;
use crate::error::{Error, Result};

/// What the process is to do. It reads this from its standard input, because a store may hold a password.
#[derive(Debug, Clone)]
pub struct Task {
    store: Map<String, Value>,
    folder: PathBuf,
    word: String,
    call: usize,
    fault: Fault,
}

impl Task {
    pub(super) fn new(subject: &Subject, place: &Place, call: usize, fault: Fault) -> Task {
        let (folder, word) = place.whereabouts();
        Task { store: subject.store.clone(), folder: folder.to_path_buf(), word: word.to_owned(), call, fault }
    }

    fn text(&self) -> String {
        let Task { store, folder, word, call, fault } = self;
        json!({"store": store, "folder": folder, "word": word, "call": call, "fault": fault.name()}).to_string()
    }

    /// From what the process reads.
    ///
    /// # Errors
    /// `usage` where that is no task.
    pub fn from_text(text: &str) -> Result<Task> {
        let no_task = || Error::usage("what is read from standard input is no task of `larder plugins test --faults`");
        let task: Value = serde_json::from_str(text).map_err(|error| no_task().caused_by(error))?;
        let fault = Fault::ALL.into_iter().find(|fault| task["fault"] == fault.name());
        let read = || {
            Some(Task {
                store: task["store"].as_object()?.clone(),
                folder: task["folder"].as_str()?.into(),
                word: task["word"].as_str()?.to_owned(),
                call: task["call"].as_u64()?.try_into().ok()?,
                fault: fault?,
            })
        };
        read().ok_or_else(no_task)
    }
}

/// Does a task until it is time to be killed, and then nothing any more. `tell` gives a line to whoever kills it.
///
/// # Errors
/// Only where nothing can be tried; what goes wrong in the script is told.
pub async fn run_until_killed(plugin: &Path, task: Task, mut tell: impl FnMut(&Value) -> Result<()>) -> Result<()> {
    let subject = Subject::load(plugin, Some(task.store)).await?;
    let place = Place::of_trial(&subject, &task.folder, &task.word);
    let faults = Faults::at(task.call, task.fault);
    let ended = tokio::select! {
        biased;
        () = faults.death() => None,
        ended = do_script(&place, &faults, &mut tell) => Some(ended),
    };
    match ended {
        None => {
            tell(&json!({"dies": true}))?;
            // Not even what was done here is cleared away.
            loop {
                std::thread::park();
            }
        }
        Some(Ok(())) => tell(&json!({"ends": true})),
        Some(Err(Stop::Failed { reason, .. } | Stop::NotRun(reason))) => tell(&json!({ "failed": reason })),
        Some(Err(Stop::Undeclared(feature))) => tell(&json!({ "failed": feature })),
    }
}

async fn do_script(place: &Place, faults: &Faults, tell: &mut impl FnMut(&Value) -> Result<()>) -> Checked {
    let repository = place.open_with(faults).await?;
    let features = place.features();
    let mut state = State::new();
    for (number, step) in SCRIPT.iter().enumerate().filter(|(_, step)| step.is_declared(features)) {
        faults.begin(number);
        let round = 10 * number as u32;
        let mut said = Ok(());
        let answers = step.perform(&repository, round, &state, || said = tell(&json!({"ending": number}))).await?;
        said?;
        for (part, answer) in step.parts(round, &state, &place.collections()?)?.iter().zip(&answers) {
            answer.check_as_expected(part).map_err(|stop| in_operation(step, stop))?;
            part.apply(&mut state);
        }
        tell(&json!({"done": number}))?;
    }
    Ok(())
}

/// How far a killed process had come.
#[derive(Debug, Default)]
pub(super) struct Died {
    /// Operations that were acknowledged.
    pub(super) done: usize,
    /// Whether the transaction that was under way had been asked to end.
    pub(super) was_ending: bool,
}

/// Starts the process, and kills it where it says.
pub(super) async fn run(program: PathBuf, plugin: PathBuf, task: Task) -> Checked<Died> {
    let watched = tokio::task::spawn_blocking(move || watch(&program, &plugin, &task)).await;
    watched.unwrap_or_else(|fault| Err(Stop::failed(format!("whoever kills the host broke off: {fault}"))))
}

fn watch(program: &Path, plugin: &Path, task: &Task) -> Checked<Died> {
    let cannot = |what: &str| {
        let message = format!("{} {what}", program.display());
        move |error: std::io::Error| Stop::NotRun(format!("{message}: {error}"))
    };
    let mut command = Command::new(program);
    command.args(["--format", "json", "plugins", "test", "--until-killed"]).arg(plugin);
    let mut child = Killed(
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot("does not start"))?,
    );
    let mut stdin = child.0.stdin.take().ok_or_else(|| Stop::failed("a pipe is missing"))?;
    stdin.write_all(task.text().as_bytes()).map_err(cannot("does not read its task"))?;
    drop(stdin);
    let mut died = Died::default();
    let stdout = child.0.stdout.take().ok_or_else(|| Stop::failed("a pipe is missing"))?;
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(cannot("cannot be listened to"))?;
        let told: Value = serde_json::from_str(&line).unwrap_or_default();
        if told["dies"] == true {
            return Ok(died);
        }
        if told.get("done").is_some() {
            died = Died { done: died.done + 1, was_ending: false };
        } else if told.get("ending").is_some() {
            died.was_ending = true;
        } else if let Some(reason) = told["failed"].as_str() {
            return Err(Stop::failed(reason));
        } else if told["ends"] == true {
            return Err(Stop::NotRun("the call was not made again: the plugin's calls are not always the same".into()));
        }
    }
    let mut said = String::new();
    if let Some(mut stderr) = child.0.stderr.take() {
        let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
    }
    Err(Stop::NotRun(format!("{} ended before it was killed: {}", program.display(), said.trim())))
}

/// A process that is killed when this goes, and waited for: whatever it held is free then.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
