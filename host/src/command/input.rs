//! Input of commands: a file, or standard input where there is none or it is `-`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;

use serde_json::value::RawValue;

use crate::error::{Error, Result};

fn failure(name: &str, error: io::Error) -> Error {
    Error::usage(format!("cannot read {name}")).caused_by(error)
}

/// Opens it for reading; the name is for messages.
pub(super) fn open(file: Option<&Path>) -> Result<(Box<dyn BufRead>, String)> {
    match file.filter(|file| *file != Path::new("-")) {
        Some(path) => {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|error| failure(&name, error))?;
            Ok((Box::new(BufReader::with_capacity(1 << 16, file)), name))
        }
        None => {
            if io::stdin().is_terminal() {
                crate::output::note("reading from standard input; end it with Ctrl-D");
            }
            Ok((Box::new(BufReader::new(io::stdin())), "standard input".into()))
        }
    }
}

/// The bodies of a JSON object, an array of objects, or objects one after the other, each as it is written there.
pub(super) fn bodies(file: Option<&Path>) -> Result<Vec<Vec<u8>>> {
    let (mut input, name) = open(file)?;
    let mut text = Vec::new();
    input.read_to_end(&mut text).map_err(|error| failure(&name, error))?;
    let not_json = |error: serde_json::Error| {
        Error::usage(format!("{name} is not JSON"))
            .caused_by(error)
            .hint("give a JSON object, an array of objects, or one object a line")
    };
    let is_array = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let raw: Vec<&RawValue> = if is_array {
        serde_json::from_slice(&text).map_err(not_json)?
    } else {
        serde_json::Deserializer::from_slice(&text).into_iter().collect::<Result<_, _>>().map_err(not_json)?
    };
    if raw.is_empty() && !is_array {
        return Err(Error::usage(format!("{name} is empty"))
            .hint("give a JSON object, an array of objects, or one object a line"));
    }
    Ok(raw.into_iter().map(|raw| raw.get().as_bytes().to_vec()).collect())
}
