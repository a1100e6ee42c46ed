//! `larder migrate`: runs a migration and shows it, as a bar to somebody who watches, as lines or JSON events otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Value, json};

use super::import::existing;
use super::{Context, entities, is_json};
use crate::cli::{Format, MigrateOptions, OnInvalidArg};
use crate::error::{Error, Kind, Result};
use crate::migration::{self, CollectionReport, Event, OnInvalid, Options, Report, Start, StateOptions, Step};
use crate::model::json::quoted;
use crate::output;

/// Where nobody watches, a line as often as this says how far it is.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn run(context: &mut Context, from: &str, to: &str, args: MigrateOptions) -> Result<()> {
    let config = context.host.config();
    let (from_store, to_store) = (config.store(Some(from))?, config.store(Some(to))?);
    if from_store.is_same_place(&to_store) {
        return Err(Error::usage(format!("`{from}` and `{to}` are the same place"))
            .hint("name two different stores with --from and --to"));
    }
    let settings = &config.migration;
    let stop = Arc::<AtomicBool>::default();
    let options = Options {
        batch_size: args.batch_size.unwrap_or(settings.batch_size),
        dry_run: args.dry_run,
        backup_location: (settings.create_backup && !args.no_backup).then(|| settings.backup_location.clone()),
        verify: settings.validate_after_migration && !args.no_verify,
        existing: existing(args.existing),
        on_invalid: match args.on_invalid {
            OnInvalidArg::Fail => OnInvalid::Fail,
            OnInvalidArg::Quarantine => OnInvalid::Quarantine,
        },
        collections: args.collection,
        excluded: args.exclude,
        cleanup_source: args.cleanup_source || settings.cleanup_source,
        workers: args.workers.unwrap_or(settings.parallel_workers),
        max_rate: args.max_rate,
        state: Some(StateOptions {
            folder: config.state_directory().join("migrations"),
            start: match (args.resume, args.restart) {
                (true, _) => Start::Resume,
                (_, true) => Start::Restart,
                _ => Start::Afresh,
            },
            source: from_store.identity(),
            target: to_store.identity(),
        }),
        stop: stop.clone(),
    };
    if options.cleanup_source && from_store.grants.overlap(&to_store.grants) {
        return Err(Error::usage(format!(
            "`{from}` and `{to}` share a directory or a database, and cleaning up the one could empty the other"
        ))
        .hint("leave out --cleanup-source (or unset `cleanup_source`), and remove by hand what is no longer needed"));
    }
    // Each takes a plugin out of the cache, or compiles it.
    let (source, target) = tokio::join!(context.open(Some(from)), context.open(Some(to)));
    let (source, target) = (source?, target?);
    let mut progress = Progress::new(context.printer.format());
    let stopping = tokio::spawn(stop_when_asked(stop, context.printer.format()));
    let report = {
        let printer = &mut context.printer;
        let mut watcher = |event: Event| progress.show(event, printer);
        migration::migrate(&source, &target, &options, &mut watcher).await
    };
    stopping.abort();
    progress.clear();
    let report = report?;
    show(context, from, to, &report)
}

/// Ctrl-C ends the migration after the batches under way; once more, it ends the process, as a crash would.
async fn stop_when_asked(stop: Arc<AtomicBool>, format: Format) {
    if tokio::signal::ctrl_c().await.is_err() {
        return;
    }
    stop.store(true, Ordering::Relaxed);
    output::warning(format, "stopping after what is under way; Ctrl-C again stops at once");
    if tokio::signal::ctrl_c().await.is_ok() {
        std::process::exit(crate::exit::code(&Error::new(Kind::Interrupted, "")).into());
    }
}

/// Where the migration is, on standard error; JSON events go to standard output, which is what reads them.
struct Progress {
    format: Format,
    bar: Option<ProgressBar>,
    /// Of the collection that a step is at.
    done: u64,
    entities: Option<u64>,
    since: Instant,
    last_line: Instant,
}

impl Progress {
    fn new(format: Format) -> Progress {
        let now = Instant::now();
        Progress { format, bar: None, done: 0, entities: None, since: now, last_line: now }
    }

    fn show(&mut self, event: Event, printer: &mut output::Printer) {
        if self.format == Format::Json {
            // A reader that went away ends the process in the printer; nothing else can fail here that the report
            // at the end would not meet too.
            let _ = printer.result("", &event_value(&event)).and_then(|()| printer.finish());
            return;
        }
        match event {
            Event::Started { .. } => {}
            Event::Entered { step, collection, entities } => {
                (self.done, self.entities, self.since) = (0, entities, Instant::now());
                if output::is_watched() {
                    self.clear();
                    self.bar = Some(bar(step, collection, entities));
                }
            }
            Event::Advanced { step, collection, entities } => {
                self.done += entities;
                match &self.bar {
                    Some(bar) => bar.inc(entities),
                    None if self.last_line.elapsed() >= LINE_INTERVAL => {
                        self.last_line = Instant::now();
                        output::note(self.line(step, &collection));
                    }
                    None => {}
                }
            }
            Event::Told { message } => self.beside_the_bar(|| output::note(&message)),
            Event::Warned { message } => self.beside_the_bar(|| output::warning(self.format, &message)),
            Event::Ended { step, summary, took } => {
                self.clear();
                output::note(format!("{:<9} {summary} ({:.1} s)", step.name(), took.as_secs_f64()));
            }
        }
    }

    fn beside_the_bar(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// How far a collection is, how fast that goes and how long it will take.
    fn line(&self, step: Step, collection: &str) -> String {
        let rate = self.done as f64 / self.since.elapsed().as_secs_f64().max(0.001);
        let (done, step) = (self.done, step.name());
        match self.entities {
            Some(all) => {
                let left = all.saturating_sub(done) as f64 / rate.max(0.001);
                format!("{step:<9} {collection}: {done} of {all}, {rate:.0}/s, {left:.0} s left")
            }
            None => format!("{step:<9} {collection}: {done}, {rate:.0}/s"),
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn bar(step: Step, collection: String, entities: Option<u64>) -> ProgressBar {
    let (bar, template) = match entities {
        Some(entities) => (ProgressBar::new(entities), "{prefix:<9} {msg} {bar:30} {pos}/{len} {rate} {eta} left"),
        None => (ProgressBar::new_spinner(), "{prefix:<9} {msg} {spinner} {pos} {rate}"),
    };
    // The templates are constants.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{:.0}/s", state.per_sec());
    });
    bar.with_style(style).with_prefix(step.name()).with_message(collection)
}

fn event_value(event: &Event) -> Value {
    match event {
        Event::Started { step, entities } => json!({ "event": "started", "step": step.name(), "entities": entities }),
        Event::Entered { step, collection, entities } => {
            json!({ "event": "entered", "step": step.name(), "collection": collection, "entities": entities })
        }
        Event::Advanced { step, collection, entities } => {
            json!({ "event": "advanced", "step": step.name(), "collection": collection, "entities": entities })
        }
        Event::Told { message } => json!({ "event": "told", "message": message }),
        Event::Warned { message } => json!({ "event": "warning", "message": message }),
        Event::Ended { step, summary, took } => {
            json!({ "event": "ended", "step": step.name(), "summary": summary, "seconds": took.as_secs_f64() })
        }
    }
}

fn show(context: &mut Context, from: &str, to: &str, report: &Report) -> Result<()> {
    if is_json(context) {
        return context.printer.result("", &report.value());
    }
    let header = ["COLLECTION", "READ", "WRITTEN", "UNCHANGED", "SKIPPED", "QUARANTINED", "DIGEST"];
    let rows: Vec<Vec<String>> = report
        .collections
        .iter()
        .map(|it| {
            let counts = [it.read, it.written, it.unchanged, it.skipped, it.quarantined];
            let digest = it.target_digest.as_ref().unwrap_or(&it.source_digest).to_string();
            let counts = counts.iter().map(u64::to_string);
            std::iter::once(it.name.clone()).chain(counts).chain([digest[..16].to_string()]).collect()
        })
        .collect();
    context.printer.table(&header, &rows)?;
    if report.dry_run {
        show_fields(context, report)?;
        for line in &report.prepared {
            output::note(format!("would make: {}", line.lines().next().unwrap_or_default()));
        }
        output::note("dry run: nothing was written");
        return Ok(());
    }
    let sum = |count: fn(&CollectionReport) -> u64| report.collections.iter().map(count).sum::<u64>();
    let (read, skipped, quarantined) = (sum(|it| it.read), sum(|it| it.skipped), sum(|it| it.quarantined));
    let proof = if report.verified { "verified equal" } else { "not verified" };
    let mut line = format!("migrated {} from `{from}` to `{to}`, {proof}", entities(read - skipped - quarantined));
    if skipped > 0 {
        line += &format!("; {} skipped", entities(skipped));
    }
    if let Some(path) = &report.quarantine {
        line += &format!("; {} in quarantine: {}", entities(quarantined), path.display());
    }
    output::note(line);
    Ok(())
}

/// How each member will be kept.
fn show_fields(context: &mut Context, report: &Report) -> Result<()> {
    let rows: Vec<Vec<String>> = report
        .collections
        .iter()
        .flat_map(|it| it.fields.iter().map(move |field| (it, field)))
        .map(|(it, field)| {
            let name = format!("{}.{}", it.name, quoted(&field.field));
            vec![name, field.kept.name().into(), field.entities.to_string(), quoted(&field.example)]
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    context.printer.verbatim("\n")?;
    context.printer.table(&["FIELD", "KEPT", "ENTITIES", "EXAMPLE"], &rows)
}
