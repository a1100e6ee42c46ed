//! Everything that is printed. Data goes to standard output, the rest to standard error; commands say what happened and
//! this module alone decides how it looks. All of it passes `text`, so that nothing in it acts on a terminal.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use larder_model::Entity;
use serde_json::{Map, Value, json};

use crate::cli::Format;
use crate::error::{Error, Result};
use crate::text;

/// Writes results in the format that was asked for.
pub struct Printer {
    format: Format,
    stdout: BufWriter<Stdout>,
}

impl Printer {
    /// A printer to this process' standard output.
    pub fn new(format: Format) -> Printer {
        Printer { format, stdout: BufWriter::with_capacity(1 << 16, io::stdout()) }
    }

    /// The format that was asked for.
    pub fn format(&self) -> Format {
        self.format
    }

    fn put(&mut self, write: impl FnOnce(&mut BufWriter<Stdout>) -> io::Result<()>) -> Result<()> {
        match write(&mut self.stdout) {
            Ok(()) => Ok(()),
            // Whoever read us has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => Err(Error::contract(larder_model::ErrorKind::Unavailable, "cannot write to standard output")
                .caused_by(error)),
        }
    }

    /// One result: `text` for people, or `value` on a line of its own.
    pub fn result(&mut self, text: impl AsRef<str>, value: &Value) -> Result<()> {
        match self.format {
            Format::Text => self.put(|out| writeln!(out, "{}", text::lines(text.as_ref()))),
            Format::Json => self.value(value),
        }
    }

    /// A line that is for people alone.
    pub fn text(&mut self, text: impl AsRef<str>) -> Result<()> {
        match self.format {
            Format::Text => self.put(|out| writeln!(out, "{}", text::lines(text.as_ref()))),
            Format::Json => Ok(()),
        }
    }

    /// A line that is for a program alone.
    pub fn record(&mut self, value: &Value) -> Result<()> {
        match self.format {
            Format::Text => Ok(()),
            Format::Json => self.value(value),
        }
    }

    /// A JSON document: over several lines for people.
    pub fn document(&mut self, value: &Value) -> Result<()> {
        match self.format {
            Format::Text => self.put(|out| writeln!(out, "{}", text::json(&format!("{value:#}")))),
            Format::Json => self.value(value),
        }
    }

    /// A JSON value on a line of its own, whatever the format.
    pub fn value(&mut self, value: &Value) -> Result<()> {
        self.put(|out| writeln!(out, "{}", text::json(&value.to_string())))
    }

    /// Text that is the result itself, whatever the format: a completion script.
    pub fn verbatim(&mut self, text: &str) -> Result<()> {
        self.put(|out| out.write_all(text.as_bytes()))
    }

    /// An entity with its members in the order in which they are stored: over several lines for people where it is
    /// looked at alone.
    pub fn entity(&mut self, entity: &Entity, alone: bool) -> Result<()> {
        let fields = Value::Object(larder_model::json::parse_object(&entity.body)?);
        if alone { self.document(&fields) } else { self.value(&fields) }
    }

    /// Columns for people: each as wide as its widest cell.
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) -> Result<()> {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|cell| text::statement_line(cell)).collect()).collect();
        let mut widths: Vec<usize> = header.iter().map(|cell| cell.len()).collect();
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let header: Vec<String> = header.iter().map(|cell| cell.to_string()).collect();
        for row in std::iter::once(&header).chain(&rows) {
            let line: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            self.put(|out| writeln!(out, "{}", line.join("  ").trim_end()))?;
        }
        Ok(())
    }

    /// Sees to it that everything is written.
    pub fn finish(&mut self) -> Result<()> {
        self.put(|out| out.flush())
    }
}

/// Whether somebody watches standard error.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// A line on standard error, beside the data.
pub fn note(line: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", text::lines(line.as_ref()));
}

/// The same for a program.
fn note_value(value: &Value) {
    let _ = writeln!(io::stderr(), "{}", text::json(&value.to_string()));
}

/// A warning on standard error.
pub fn warning(format: Format, message: &str) {
    match format {
        Format::Text => note(format!("warning: {message}")),
        Format::Json => note_value(&json!({ "warning": message })),
    }
}

/// Where a page of a query ended, on standard error: the data is the entities alone.
pub fn next_page(format: Format, cursor: &str) {
    match format {
        Format::Text => note(format!("next: --cursor {cursor}")),
        Format::Json => note_value(&json!({ "next": cursor })),
    }
}

/// An error on standard error, with its causes and its hint.
pub fn error(format: Format, error: &Error) {
    if format == Format::Json {
        note_value(&error_value(error));
        return;
    }
    note(format!("error: {}", error.message));
    for cause in &error.causes {
        note(format!("caused by: {cause}"));
    }
    if let Some(hint) = &error.hint {
        note(format!("\nhint: {hint}"));
    }
}

/// An error with its causes in one line.
pub fn line(error: &Error) -> String {
    std::iter::once(&error.message).chain(&error.causes).map(String::as_str).collect::<Vec<_>>().join(": ")
}

/// An error as one JSON object.
pub fn error_value(error: &Error) -> Value {
    let mut value = Map::new();
    value.insert("kind".into(), error.kind.name().into());
    value.insert("retry".into(), error.retry.name().into());
    value.insert("message".into(), error.message.as_str().into());
    if !error.causes.is_empty() {
        value.insert("causes".into(), error.causes.clone().into());
    }
    if let Some(hint) = &error.hint {
        value.insert("hint".into(), hint.as_str().into());
    }
    if let Some(index) = error.write_index {
        value.insert("write_index".into(), index.into());
    }
    if let Some(version) = error.current_version {
        value.insert("current_version".into(), version.into());
    }
    value.into()
}
