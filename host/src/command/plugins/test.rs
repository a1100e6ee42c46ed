//! `larder plugins test`: the conformance suite against a component, for its author.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cli::{Format, PluginsTestArgs};
use crate::conformance::{self, CaseReport, Instances, Subject, Verdict};
use crate::error::{Error, Kind, Result};
use crate::output::{self, Printer};
use crate::text::one_line;

pub(in crate::command) async fn run(printer: &mut Printer, args: &PluginsTestArgs) -> Result<()> {
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
