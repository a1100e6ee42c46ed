//! What was measured, as the tables in `docs/performance.md`.

use std::fmt::Write;
use std::time::SystemTime;

use crate::measure::Times;

/// One subject.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// What the middle column is.
    pub(crate) peer: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// One comparison.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    peer_ms: f64,
    larder_ms: f64,
    ratio: f64,
    ratio_max: Option<f64>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, larder: &Times, peer: &Times) -> Row {
        let row = Row {
            what: what.into(),
            peer_ms: peer.median_ms(),
            larder_ms: larder.median_ms(),
            ratio: larder.ratio_to(peer),
            ratio_max: None,
        };
        eprintln!("  {}: {:.1} ms, {:.1} ms, {:.2}", row.what, row.peer_ms, row.larder_ms, row.ratio);
        row
    }

    /// More than this is a failure.
    pub(crate) fn at_most(self, ratio_max: f64) -> Row {
        Row { ratio_max: Some(ratio_max), ..self }
    }

    fn is_broken(&self) -> bool {
        self.ratio_max.is_some_and(|max| self.ratio > max)
    }
}

impl Section {
    /// A sentence for each bound that does not hold.
    pub(crate) fn broken(&self) -> impl Iterator<Item = String> {
        let broken = self.rows.iter().filter(|row| row.is_broken());
        broken.map(|row| {
            let max = row.ratio_max.unwrap_or_default();
            format!(
                "{}: {}: {:.2} times as long as {}, but at most {max:.2}",
                self.title, row.what, row.ratio, self.peer
            )
        })
    }
}

/// All tables, with the machine that they are of.
pub(crate) fn markdown(machine: &str, sections: &[Section], rounds: usize) -> String {
    let mut text = format!("{machine}; medians of {rounds} rounds.\n");
    for section in sections {
        let (title, peer) = (section.title, section.peer);
        // Writing to a String cannot fail.
        let _ = write!(text, "\n### {title}\n\n| what | {peer}, ms | larder, ms | ratio | bound |\n");
        text.push_str("| --- | ---: | ---: | ---: | --- |\n");
        for row in &section.rows {
            let bound = match row.ratio_max {
                None => String::new(),
                Some(max) => {
                    format!("≤ {}{}", (max * 100.0).round() / 100.0, if row.is_broken() { " **broken**" } else { "" })
                }
            };
            let Row { what, peer_ms, larder_ms, ratio, .. } = row;
            let (peer_ms, larder_ms) = (milliseconds(*peer_ms), milliseconds(*larder_ms));
            let _ = writeln!(text, "| {what} | {peer_ms} | {larder_ms} | {ratio:.2} | {bound} |");
        }
    }
    text
}

/// Three digits that mean something.
fn milliseconds(ms: f64) -> String {
    match ms {
        100.0.. => format!("{ms:.0}"),
        10.0.. => format!("{ms:.1}"),
        _ => format!("{ms:.2}"),
    }
}

/// What it was measured on. Asked for before anything is measured, so that the load is that of others.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or(std::env::consts::ARCH, |(_, model)| model.trim());
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let (system, version) = (std::env::consts::OS, env!("CARGO_PKG_VERSION"));
    let loads = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = loads.split(' ').next().filter(|load| !load.is_empty()).unwrap_or("unknown");
    format!("Larder {version} on {}; {system}, {cores} cores of {model}; load before: {load}", &date[..10])
}
