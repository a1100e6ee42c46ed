//! `larder migrate`: runs a migration and shows it, as a bar to somebody who watches, as lines or JSON events otherwise.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Value, json};

use super::import::existing;
use super::{Context, entities, is_json};
use crate::cli::{Format, MigrateOptions};
use crate::error::{Error, Result};
use crate::migration::{self, Event, Options, Report, Step};
use crate::output;

pub(super) async fn run(context: &mut Context, from: &str, to: &str, args: MigrateOptions) -> Result<()> {
    let config = context.host.config();
    let (from_store, to_store) = (config.store(Some(from))?, config.store(Some(to))?);
    if from_store.is_same_place(&to_store) {
        return Err(Error::usage(format!("`{from}` and `{to}` are the same place"))
            .hint("name two different stores with --from and --to"));
    }
    let settings = &config.migration;
    let options = Options {
        batch_size: args.batch_size.unwrap_or(settings.batch_size),
        dry_run: args.dry_run,
        backup_location: (settings.create_backup && !args.no_backup).then(|| settings.backup_location.clone()),
        verify: settings.validate_after_migration && !args.no_verify,
        existing: existing(args.existing),
        collections: args.collection,
        excluded: args.exclude,
        cleanup_source: args.cleanup_source || settings.cleanup_source,
        workers: args.workers.unwrap_or(settings.parallel_workers),
    };
    if options.cleanup_source && from_store.grants.overlap(&to_store.grants) {
        return Err(Error::usage(format!(
            "`{from}` and `{to}` share a directory or a database, and cleaning up the one could empty the other"
        ))
        .hint("leave out --cleanup-source (or unset `cleanup_source`), and remove by hand what is no longer needed"));
    }
    let source = context.open(Some(from)).await?;
    let target = context.open(Some(to)).await?;
    let mut progress = Progress::new(context.printer.format());
    let report = {
        let printer = &mut context.printer;
        let mut watcher = |event: Event| progress.show(event, printer);
        migration::migrate(&source, &target, &options, &mut watcher).await
    };
    progress.clear();
    let report = report?;
    show(context, from, to, &report)
}

/// Where the migration is, on standard error; JSON events go to standard output, which is what reads them.
struct Progress {
    format: Format,
    bar: Option<ProgressBar>,
    step_started: Instant,
}

impl Progress {
    fn new(format: Format) -> Progress {
        Progress { format, bar: None, step_started: Instant::now() }
    }

    fn show(&mut self, event: Event, printer: &mut output::Printer) {
        if self.format == Format::Json {
            // A reader that went away ends the process in the printer; nothing else can fail here that the report
            // at the end would not meet too.
            let _ = printer.result("", &event_value(&event));
            return;
        }
        match event {
            Event::Started { step, entities } => {
                self.step_started = Instant::now();
                if output::is_watched() {
                    self.bar = Some(bar(step, entities));
                }
            }
            Event::Advanced { collection, entities, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(collection);
                    bar.inc(entities);
                }
            }
            Event::Warned { message } => match &self.bar {
                Some(bar) => bar.suspend(|| output::warning(self.format, &message)),
                None => output::warning(self.format, &message),
            },
            Event::Ended { step, summary, took } => {
                self.clear();
                output::note(format!("{:<9} {summary} ({:.1} s)", step.name(), took.as_secs_f64()));
            }
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn bar(step: Step, entities: Option<u64>) -> ProgressBar {
    let (bar, template) = match entities {
        Some(entities) => (ProgressBar::new(entities), "{prefix:<9} {bar:30} {pos}/{len} {msg} {rate} {eta} left"),
        None => (ProgressBar::new_spinner(), "{prefix:<9} {spinner} {pos} {msg} {rate}"),
    };
    // The templates are constants.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{:.0}/s", state.per_sec());
    });
    bar.with_style(style).with_prefix(step.name())
}

fn event_value(event: &Event) -> Value {
    match event {
        Event::Started { step, entities } => json!({ "event": "started", "step": step.name(), "entities": entities }),
        Event::Advanced { step, collection, entities } => {
            json!({ "event": "advanced", "step": step.name(), "collection": collection, "entities": entities })
        }
        Event::Warned { message } => json!({ "event": "warning", "message": message }),
        Event::Ended { step, summary, took } => {
            json!({ "event": "ended", "step": step.name(), "summary": summary, "seconds": took.as_secs_f64() })
        }
    }
}

fn show(context: &mut Context, from: &str, to: &str, report: &Report) -> Result<()> {
    if is_json(context) {
        return context.printer.result("", &report_value(from, to, report));
    }
    let header = ["COLLECTION", "READ", "WRITTEN", "UNCHANGED", "SKIPPED", "DIGEST"];
    let rows: Vec<Vec<String>> = report
        .collections
        .iter()
        .map(|it| {
            let counts = [it.read, it.written, it.unchanged, it.skipped];
            let digest = it.target_digest.as_ref().unwrap_or(&it.source_digest).to_string();
            let counts = counts.iter().map(u64::to_string);
            std::iter::once(it.name.clone()).chain(counts).chain([digest[..16].to_string()]).collect()
        })
        .collect();
    context.printer.table(&header, &rows)?;
    if report.dry_run {
        for line in &report.prepared {
            output::note(format!("would make: {}", line.lines().next().unwrap_or_default()));
        }
        output::note("dry run: nothing was written");
        return Ok(());
    }
    let (read, skipped) =
        report.collections.iter().fold((0, 0), |(read, skipped), it| (read + it.read, skipped + it.skipped));
    let proof = if report.verified { "verified equal" } else { "not verified" };
    let left = if skipped == 0 { String::new() } else { format!("; {} skipped", entities(skipped)) };
    output::note(format!("migrated {} from `{from}` to `{to}`, {proof}{left}", entities(read - skipped)));
    Ok(())
}

fn report_value(from: &str, to: &str, report: &Report) -> Value {
    let collections: Vec<Value> = report
        .collections
        .iter()
        .map(|it| {
            json!({
                "collection": it.name,
                "read": it.read,
                "written": it.written,
                "unchanged": it.unchanged,
                "skipped": it.skipped,
                "removed_from_source": it.removed,
                "source_digest": it.source_digest.to_string(),
                "target_digest": it.target_digest.as_ref().map(ToString::to_string),
            })
        })
        .collect();
    json!({
        "event": "report",
        "from": from,
        "to": to,
        "dry_run": report.dry_run,
        "prepared": report.prepared,
        "backup": report.backup,
        "verified": report.verified,
        "seconds": report.took.as_secs_f64(),
        "collections": collections,
    })
}
