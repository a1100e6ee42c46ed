//! `larder plugins test`: the conformance suite against a component, for its author.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cli::{Format, PluginsTestArgs};
use crate::conformance::faults::{self, Options, Task, TrialReport};
use crate::conformance::{self, CaseReport, Instances, Subject, Verdict};
use crate::error::{Error, Kind, Result};
use crate::output::{self, Printer};
use crate::text::one_line;

pub(in crate::command) async fn run(printer: &mut Printer, args: &PluginsTestArgs) -> Result<()> {
    if args.until_killed {
        return be_killed(printer, args).await;
    }
    if args.list && args.faults {
        return faults::operations().try_for_each(|name| printer.result(name, &json!({ "operation": name })));
    }
    if args.list {
        return conformance::names().try_for_each(|name| printer.result(name, &json!({ "case": name })));
    }
    let store = args.store_config.as_deref().map(store_config).transpose()?;
    let subject = Subject::load(&args.file, store).await?;
    let plugin = subject.plugin();
    let file = plugin.path.display().to_string();
    if printer.format() == Format::Text {
        output::note(format!("testing {} {} ({file})", plugin.name, one_line(&plugin.description.version)));
    }
    if args.faults {
        return try_faults(printer, &subject, args).await;
    }
    let mut printed = Ok(());
    let reports = conformance::run(&subject, &args.case, |report| {
        if printed.is_ok() {
            printed = tell(printer, report);
        }
    })
    .await?;
    printed?;
    sum_up(printer, &subject, &reports)
}

/// JSON, or the name of a file that holds it.
fn store_config(given: &str) -> Result<Map<String, Value>> {
    let text = if given.trim_start().starts_with('{') {
        given.as_bytes().to_vec()
    } else {
        std::fs::read(Path::new(given)).map_err(|error| {
            Error::usage(format!("--store-config: the file {given} cannot be read")).caused_by(error).hint(
                r#"give JSON such as {"grants": {"files": {"directory": "${SCRATCH}"}}}, or a file that holds it"#,
            )
        })?
    };
    crate::model::json::parse_object(&text)
        .map_err(|error| Error::usage("--store-config holds no JSON object").caused_by(error))
}

fn tell(printer: &mut Printer, report: &CaseReport) -> Result<()> {
    let mut value = json!({
        "case": report.case,
        "instances": report.instances.name(),
        "verdict": report.verdict.name(),
        "milliseconds": u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
    });
    let mut text = match report.verdict {
        Verdict::Passed => format!("passed         {}", report.case),
        Verdict::Undeclared { .. } => format!("undeclared     {}", report.case),
        Verdict::Failed { .. } => format!("FAILED         {}", report.case),
        Verdict::NotRun { .. } => format!("COULD NOT RUN  {}", report.case),
    };
    if report.instances == Instances::Fresh {
        text.push_str(" (fresh instances)");
    }
    match &report.verdict {
        Verdict::Passed => {}
        Verdict::Undeclared { feature } => {
            value["feature"] = (*feature).into();
            text.push_str(&format!("\n               `{feature}` is not declared, and answers `unsupported`"));
        }
        Verdict::Failed { reason, at } => {
            value["reason"] = reason.as_str().into();
            text.push_str(&format!("\n               {reason}"));
            if let Some(at) = at {
                value["at"] = at.as_str().into();
                text.push_str(&format!("\n               at {at}"));
            }
        }
        Verdict::NotRun { reason } => {
            value["reason"] = reason.as_str().into();
            text.push_str(&format!("\n               {reason}"));
        }
    }
    printer.result(text, &value)
}

fn sum_up(printer: &mut Printer, subject: &Subject, reports: &[CaseReport]) -> Result<()> {
    let count = |name: &str| reports.iter().filter(|report| report.verdict.name() == name).count();
    let [passed, undeclared, failed, not_run] = ["passed", "undeclared", "failed", "not-run"].map(count);
    let plugin = subject.plugin();
    let text = format!(
        "\n{}: {passed} passed, {undeclared} undeclared and refused as they should be, {failed} failed, {not_run} could not run",
        plugin.name
    );
    let value = json!({
        "plugin": plugin.name,
        "version": plugin.description.version,
        "sha256": plugin.sha256,
        "passed": passed,
        "undeclared": undeclared,
        "failed": failed,
        "not_run": not_run,
    });
    printer.result(text, &value)?;
    if not_run > 0 {
        output::warning(
            printer.format(),
            &format!("{not_run} runs of cases could not run, and say nothing of the plugin"),
        );
    }
    // The same promise with another result depends on what an instance remembers.
    for warm in reports.iter().filter(|report| report.instances == Instances::Warm) {
        let fresh = reports.iter().find(|fresh| fresh.case == warm.case && fresh.instances == Instances::Fresh);
        if let Some(fresh) = fresh
            && fresh.verdict.name() != warm.verdict.name()
            && !matches!(fresh.verdict, Verdict::NotRun { .. })
        {
            let message = format!(
                "`{}` {} on warm instances and {} on fresh ones: it hangs on what an instance remembers",
                warm.case,
                warm.verdict.name(),
                fresh.verdict.name()
            );
            output::warning(printer.format(), &message);
        }
    }
    if failed > 0 {
        let message = format!("plugin `{}` does not keep the contract: {failed} failed", plugin.name);
        return Err(Error::new(Kind::Differs, message)
            .hint("--case NAME runs one case; the line of the suite that is named says what it looks at"));
    }
    Ok(())
}

/// Every fault, one line each for a program; for people one an operation, and the faults that showed something.
async fn try_faults(printer: &mut Printer, subject: &Subject, args: &PluginsTestArgs) -> Result<()> {
    let program = std::env::current_exe().map_err(|error| {
        Error::refused("cannot tell which program this is, to run it as a host that is killed").caused_by(error)
    })?;
    let options = Options { words: &args.case, every: args.every as usize, program: &program };
    let mut printed = Ok(());
    let mut operation = Operation::default();
    let reports = faults::run(subject, &options, |report| {
        if printed.is_ok() {
            printed = tell_trial(printer, report, &mut operation);
        }
    })
    .await?;
    printed?;
    operation.tell(printer)?;
    sum_up_faults(printer, subject, &reports)
}

/// What was tried in one operation.
#[derive(Default)]
struct Operation {
    name: &'static str,
    passed: usize,
}

impl Operation {
    fn tell(&self, printer: &mut Printer) -> Result<()> {
        match self.passed {
            0 => Ok(()),
            count => printer.text(format!("passed         {}, {count} faults", self.name)),
        }
    }
}

fn tell_trial(printer: &mut Printer, report: &TrialReport, operation: &mut Operation) -> Result<()> {
    let TrialReport { trial, verdict, took } = report;
    if operation.name != trial.operation {
        operation.tell(printer)?;
        *operation = Operation { name: trial.operation, passed: 0 };
    }
    let mut value = json!({
        "operation": trial.operation,
        "call": trial.call,
        "calls": trial.calls,
        "function": trial.function,
        "about": trial.about,
        "fault": trial.fault.name(),
        "verdict": verdict.name(),
        "milliseconds": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    });
    let word = match verdict {
        Verdict::Passed => {
            operation.passed += 1;
            return printer.record(&value);
        }
        Verdict::Failed { .. } => "FAILED       ",
        Verdict::Undeclared { .. } | Verdict::NotRun { .. } => "COULD NOT RUN",
    };
    let mut text = format!(
        "{word}  {}, call {} of {}: {} {}: {}",
        trial.operation,
        trial.call,
        trial.calls,
        trial.function,
        trial.about,
        trial.fault.name()
    );
    if let Verdict::Failed { reason, .. } | Verdict::NotRun { reason } = verdict {
        value["reason"] = reason.as_str().into();
        text.push_str(&format!("\n               {}", one_line(reason)));
    }
    if let Verdict::Failed { at: Some(at), .. } = verdict {
        value["at"] = at.as_str().into();
        text.push_str(&format!("\n               at {at}"));
    }
    printer.result(text, &value)
}

fn sum_up_faults(printer: &mut Printer, subject: &Subject, reports: &[TrialReport]) -> Result<()> {
    let count = |name: &str| reports.iter().filter(|report| report.verdict.name() == name).count();
    let [passed, failed, not_run] = ["passed", "failed", "not-run"].map(count);
    let plugin = subject.plugin();
    let calls = reports.first().map_or(0, |report| report.trial.calls);
    let text = format!(
        "\n{}: {} faults at {calls} calls to the host, {passed} passed, {failed} failed, {not_run} could not run",
        plugin.name,
        reports.len()
    );
    let value = json!({
        "plugin": plugin.name,
        "version": plugin.description.version,
        "sha256": plugin.sha256,
        "calls": calls,
        "passed": passed,
        "failed": failed,
        "not_run": not_run,
    });
    printer.result(text, &value)?;
    if not_run > 0 {
        let message = format!("{not_run} faults could not be tried, and say nothing of the plugin");
        output::warning(printer.format(), &message);
    }
    if failed > 0 {
        let message =
            format!("plugin `{}` does not keep the contract where something goes wrong: {failed} failed", plugin.name);
        return Err(Error::new(Kind::Differs, message).hint(
            "--case NAME tries the faults of one operation; the line of the suite that is named says what it looks at",
        ));
    }
    Ok(())
}

/// The other end of a trial in which the host is killed.
async fn be_killed(printer: &mut Printer, args: &PluginsTestArgs) -> Result<()> {
    let text = std::io::read_to_string(std::io::stdin())
        .map_err(|error| Error::usage("standard input cannot be read").caused_by(error))?;
    let task = Task::from_text(&text)?;
    faults::run_until_killed(&args.file, task, |line| printer.record(line).and_then(|()| printer.finish())).await
}
