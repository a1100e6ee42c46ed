//! The strategy where anything goes wrong at any call: a call fails before, half-way through or after what it does, the
//! process dies in it, the power fails, the disk is full.
//!
//! A script of a client is run with a fault at its first call, at its second, and so on to its last, in every way that
//! a call can go wrong: nothing is sampled. After each fault the store must hold exactly what was acknowledged, or that and
//! the whole of the one commit whose answer was that its outcome is unknown, or that was never answered. It must do
//! so for the instance that met the fault, for another process that looks on and writes, and for whoever opens it later; and
//! the script goes on.

mod client;
mod damage;
mod disk;

use std::{fs, path::Path};

use larder_guest::Strategy;
use larder_model::{ErrorKind, Retry};
use tempfile::TempDir;

use client::{Answered, Client, Config, State, Step, Store, Wrong};
use client::{content, create, difference, remove, save, stale, update};
use disk::{Call, Disk, Effect, Fault, Lost, Then};

/// How often a step is tried that was refused without effect.
const ATTEMPTS_MAX: usize = 3;
/// Whoever went on rightly for so many steps, and can be closed, goes on.
const STEPS_AFTER_A_FAULT: usize = 5;
/// What is told of in a failure.
const SHOWN_MAX: usize = 6;

/// What a client does with a store, from where there is none: it makes documents and lets them grow and shrink, so that
/// a journal is folded at several of the commits.
fn script() -> Vec<Step> {
    let all_three = |id: &'static str| [save("templates", id), save("requests", id), save("machines", id)];
    vec![
        Step::one(save("requests", "a")),
        Step::Look,
        Step::atomic(all_three("b")),
        Step::one(update("requests", "a")),
        Step::one(stale("requests", "a")),
        Step::Apply {
            writes: vec![create("machines", "b"), create("machines", "c"), remove("templates", "b")],
            atomic: false,
        },
        Step::atomic([save("machines", "d"), remove("requests", "b"), stale("machines", "c")]),
        Step::Transaction {
            calls: vec![vec![save("requests", "e"), update("machines", "c")], vec![update("requests", "e")]],
            commits: true,
        },
        Step::one(remove("requests", "a")),
        Step::Close,
        Step::Look,
        Step::one(save("templates", "f")),
        Step::Transaction { calls: vec![vec![save("requests", "g"), remove("machines", "c")]], commits: false },
        Step::Load { collection: "machines", calls: vec![vec!["h", "i"], vec!["b", "j"]] },
        Step::atomic([remove("machines", "h"), save("templates", "f"), create("requests", "k")]),
        Step::one(save("machines", "j")),
        Step::one(save("machines", "j")),
        Step::Close,
        Step::one(update("machines", "j")),
        Step::Look,
    ]
}

/// The client, and what it knows to be stored.
struct Run {
    config: Config,
    place: TempDir,
    disk: Disk,
    store: Option<Store>,
    client: Client,
    state: State,
    /// Whether a power failure was nothing but a death, which is tried by itself.
    is_harmless: bool,
    /// Whether something went wrong, and what is stored was looked for since.
    has_settled: bool,
}

impl Run {
    fn new(config: Config, fault: Option<(usize, Fault)>) -> Run {
        let place = disk::directory();
        let disk = Disk::with_fault(place.path(), fault);
        Run {
            config,
            place,
            disk,
            store: None,
            client: Client::default(),
            state: State::new(),
            is_harmless: false,
            has_settled: false,
        }
    }

    fn root(&self) -> &Path {
        self.place.path()
    }

    /// Does a step, with whatever goes wrong in it, and again where it turns out not to be done.
    fn step(&mut self, step: &Step) -> Result<(), Wrong> {
        for _ in 0..ATTEMPTS_MAX {
            let Answered { answer, possible, is_partial } = self.attempt(step)?;
            let (before, after) = (&possible[0], possible.last().expect("there is a first"));
            let has_failed = self.disk.has_failed();
            if !has_failed {
                answer.map_err(|error| format!("nothing went wrong, and still: {error:?}"))?;
                if is_partial {
                    return Err("nothing went wrong, and still it is not all done".to_owned());
                }
                self.state = after.clone();
                return Ok(());
            }
            self.disk.mend();
            if self.disk.is_harmless() {
                self.is_harmless = true;
                return Ok(());
            }
            let is_done = match answer {
                _ if self.disk.is_dead() => {
                    self.store = None;
                    self.disk = Disk::new(self.root());
                    self.settle(&possible, "after the process died")? == *after
                }
                Ok(()) => self.settle(std::slice::from_ref(after), "after it was acknowledged")? == *after,
                Err(error) if error.retry == Retry::UnknownOutcome => {
                    self.settle(&possible, &format!("after {error:?}"))? == *after
                }
                Err(error) => {
                    self.settle(std::slice::from_ref(before), &format!("after {error:?}"))?;
                    false
                }
            };
            if is_done && !is_partial {
                return Ok(());
            }
        }
        Err(format!("not done in {ATTEMPTS_MAX} attempts, though only one call went wrong"))
    }

    fn attempt(&mut self, step: &Step) -> Result<Answered, Wrong> {
        if self.store.is_none() {
            match self.config.open(&self.disk) {
                Ok(store) => self.store = Some(store),
                Err(error) => return Ok(Answered::new(Err(error), vec![self.state.clone()])),
            }
        }
        let store = self.store.as_mut().expect("it was opened");
        let answered = self.client.perform(store, &self.state, step)?;
        // Nothing is called on an instance that was closed, unless it was in use.
        let is_busy = answered.answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Busy);
        if matches!(step, Step::Close) && !is_busy {
            self.store = None;
        }
        Ok(answered)
    }

    /// Finds out which of the possible is stored, and that it stays so: for this client, and for another process, which
    /// then writes something.
    fn settle(&mut self, possible: &[State], when: &str) -> Result<State, Wrong> {
        if self.store.is_none() {
            let opened = self.config.open(&self.disk);
            self.store = Some(opened.map_err(|error| format!("{when} it does not open: {error:?}"))?);
        }
        let store = self.store.as_mut().expect("it was opened");
        let found = content(store).map_err(|error| format!("{when} it cannot be read: {error:?}"))?;
        if !possible.contains(&found) {
            let differences: Vec<_> = possible.iter().map(|state| difference(&found, state)).collect();
            return Err(format!("{when} it holds {}", differences.join("; or ")));
        }
        self.state = found.clone();
        self.has_settled = true;
        let mut other = self.config.open(&Disk::new(self.root())).map_err(|error| format!("{when}: {error:?}"))?;
        let seen = content(&mut other).map_err(|error| format!("{when} others cannot read it: {error:?}"))?;
        if seen != self.state {
            return Err(format!("{when} others see {}", difference(&seen, &self.state)));
        }
        let Answered { answer, mut possible, .. } =
            self.client.perform(&mut other, &self.state, &Step::one(save("requests", "other")))?;
        answer.map_err(|error| format!("{when} others cannot write: {error:?}"))?;
        self.state = possible.pop().expect("the state after it");
        Ok(found)
    }

    /// Everybody sees the same at the end, and a store that was closed is in its documents.
    fn finish(mut self) -> Result<Vec<Call>, Wrong> {
        let calls = self.disk.calls();
        self.settle(&[self.state.clone()], "at the end")?;
        let store = self.store.as_mut().expect("it was just used");
        let found = content(store).map_err(|error| format!("at the end it cannot be read: {error:?}"))?;
        if found != self.state {
            return Err(format!("at the end it holds {}", difference(&found, &self.state)));
        }
        let closed = store.flush().and_then(|()| store.close());
        closed.map_err(|error| format!("at the end it cannot be closed: {error:?}"))?;
        let documents = self.config.documents(self.root());
        if documents != self.state {
            return Err(format!("the documents hold {}", difference(&documents, &self.state)));
        }
        let names = fs::read_dir(self.root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        match names.into_iter().find(|name| name.ends_with(".journal")) {
            Some(name) => Err(format!("{name} is left beside the documents")),
            None => Ok(calls),
        }
    }
}

fn run(config: Config, fault: Option<(usize, Fault)>) -> Result<Vec<Call>, Wrong> {
    let mut run = Run::new(config, fault);
    let mut steps_left = STEPS_AFTER_A_FAULT;
    for (number, step) in script().iter().enumerate() {
        run.step(step).map_err(|wrong| format!("step {number}, {step:?}: {wrong}"))?;
        if run.is_harmless {
            return Ok(Vec::new());
        }
        if run.has_settled && !is_thorough() {
            if steps_left == 0 {
                break;
            }
            steps_left -= 1;
        }
    }
    run.finish()
}

/// Every way in which a call can go wrong.
fn faults(call: &Call) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut add = |does: Effect, ends: &[Then]| faults.extend(ends.iter().map(|&then| Fault { does, then }));
    let power_cuts = [Lost::All, Lost::Half, Lost::Content].map(Then::PowerCut);
    if call.function == "try-acquire" {
        add(Effect::Nothing, &[Then::Busy]);
    }
    add(Effect::Nothing, &[Then::Error]);
    if !call.writes() {
        return faults;
    }
    add(Effect::Nothing, &[Then::Outage, Then::Death]);
    add(Effect::Nothing, &power_cuts);
    let parts = match call.function {
        "append" if is_thorough() => (0..call.bytes).collect(),
        "append" | "replacement.write" => vec![1, call.bytes / 2, call.bytes.saturating_sub(1)],
        "replacement.commit" => vec![0],
        _ => Vec::new(),
    };
    for part in parts {
        add(Effect::Part(part), &[Then::Error, Then::Outage, Then::Death]);
    }
    // After it is before the next one, but for whoever is answered.
    add(Effect::Everything, &[Then::Error, Then::Outage]);
    faults
}

/// Whether to take the time for everything.
fn is_thorough() -> bool {
    std::env::var_os("LARDER_FAULTS_THOROUGH").is_some()
}

/// Runs the script with each fault at each call.
fn check_every_fault(config: Config) {
    let calls = run(config, None).unwrap_or_else(|wrong| panic!("without a fault: {wrong}"));
    let (mut runs, mut failures) = (0, Vec::new());
    for (number, call) in calls.iter().enumerate() {
        for fault in faults(call) {
            runs += 1;
            if let Err(wrong) = run(config, Some((number, fault))) {
                let Fault { does, then } = fault;
                let Call { function, path, .. } = call;
                failures.push(format!(
                    "call {number}, {function} of {path}, does {does:?} and ends with {then:?}: {wrong}"
                ));
            }
        }
    }
    println!("{config:?}: {} calls, {runs} runs, {} of them wrong", calls.len(), failures.len());
    let shown = failures.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(failures.is_empty(), "{} of {runs} runs went wrong, among them:\n{shown}", failures.len());
}

macro_rules! configurations {
    ($($name:ident: $split:literal $journal:literal $compressed:literal,)*) => {$(
        #[test]
        fn $name() {
            let (is_split, journal, compressed) = ($split, $journal, $compressed);
            check_every_fault(Config { is_split, journal, compressed, write_buffer_size: 500 });
        }
    )*};
}

configurations! {
    every_fault_in_a_single_file: false false false,
    every_fault_in_a_compressed_file: false false true,
    every_fault_in_split_files: true false false,
    every_fault_in_compressed_split_files: true false true,
    every_fault_in_a_single_file_with_a_journal: false true false,
    every_fault_in_a_compressed_file_with_a_journal: false true true,
    every_fault_in_split_files_with_a_journal: true true false,
    every_fault_in_compressed_split_files_with_a_journal: true true true,
}

/// The disk is full at each byte that a call writes first or last, and in its middle.
#[test]
fn a_disk_that_is_full_takes_nothing_away() {
    for bits in 0..8 {
        let [is_split, journal, compressed] = [1, 2, 4].map(|bit| bits & bit != 0);
        let config = Config { is_split, journal, compressed, write_buffer_size: 500 };
        let mut written = 0;
        for call in check_full_disk(config, usize::MAX) {
            for left in
                [0, 1, call.bytes / 2, call.bytes.saturating_sub(1)].into_iter().filter(|left| *left < call.bytes)
            {
                check_full_disk(config, written + left);
            }
            written += call.bytes;
        }
    }
}

/// Writes until the disk is full and on, then makes room and writes again.
fn check_full_disk(config: Config, space: usize) -> Vec<Call> {
    let mut run = Run::new(config, None);
    run.disk.set_space(Some(space));
    let all_three = |id| Step::atomic([save("templates", id), save("requests", id), save("machines", id)]);
    let steps = [
        Step::one(save("requests", "a")),
        all_three("b"),
        Step::one(save("requests", "a")),
        Step::one(remove("machines", "b")),
        Step::Load { collection: "machines", calls: vec![vec!["c", "d"]] },
        Step::one(save("machines", "a")),
        Step::one(save("requests", "b")),
        all_three("c"),
    ];
    for has_room in [false, true] {
        for step in &steps {
            let at = || format!("{config:?} with room for {space} bytes, {step:?}");
            let Answered { answer, possible, .. } =
                run.attempt(step).unwrap_or_else(|wrong| panic!("{}: {wrong}", at()));
            let is_full = run.disk.has_failed();
            let store = run.store.as_mut().expect("it was opened");
            let found = content(store).unwrap_or_else(|error| panic!("{}: {error:?}", at()));
            let expected = match &answer {
                Ok(()) => &possible[possible.len() - 1..],
                Err(error) if error.retry == Retry::UnknownOutcome => &possible,
                Err(_) => &possible[..1],
            };
            let differences: Vec<_> = expected.iter().map(|state| difference(&found, state)).collect();
            assert!(expected.contains(&found), "{} ends with {answer:?} and holds {differences:?}", at());
            if let Err(error) = answer {
                assert!(is_full && !has_room, "{}: {error:?}", at());
                assert_eq!(error.kind, ErrorKind::LimitExceeded, "{}: {error:?}", at());
            }
            run.state = found;
        }
        run.disk.set_space(None);
    }
    run.finish().unwrap_or_else(|wrong| panic!("{config:?} with room for {space} bytes: {wrong}"))
}
