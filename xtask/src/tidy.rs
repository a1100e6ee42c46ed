//! The rules that the compiler and clippy cannot check. Most are absences: a word that stands only where it belongs
//! keeps the data path short and the boundaries where they are. They run as `cargo xtask tidy` and as a test.
//!
//! Only files that git tracks are read, as they stand in the working folder. In Rust files a rule looks at code: not at
//! comments, not at tests.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{output, root};

/// What is larger is data, and data is generated.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Words that may stand in some modules only.
struct Absence {
    /// The folder that the rule is about.
    directory: &'static str,
    /// Any of these in a line of code breaks the rule.
    words: &'static [&'static str],
    /// Modules of that folder, with what is below them, where the words belong.
    allowed: &'static [&'static str],
    /// What to tell whoever broke it.
    reason: &'static str,
}

const ABSENCES: &[Absence] = &[
    Absence {
        directory: "host/src",
        words: &["wasmtime"],
        allowed: &["plugin", "capability", "repository"],
        reason: "only plugin, capability and repository know the WebAssembly engine",
    },
    Absence {
        directory: "host/src",
        words: &["env::var", "env::vars"],
        allowed: &["config"],
        reason: "only config reads environment variables, so that every setting is resolved in one place",
    },
    Absence {
        directory: "host/src",
        words: &["std::fs", "tokio::fs", "fs::File", "ambient_authority"],
        allowed: &["config", "plugin", "capability", "command", "migration", "conformance"],
        reason: "what a plugin can reach is opened by capability from a grant; other files only by who was given their name",
    },
    Absence {
        directory: "host/src",
        words: &["print!(", "println!(", "dbg!(", "io::stdout", "io::stderr"],
        allowed: &["output", "main"],
        reason: "only output decides what is drawn",
    },
    Absence {
        directory: "host/src",
        words: &[
            "json_strategy",
            "sql_strategy",
            "dynamodb_strategy",
            "\"json\" =>",
            "\"json\" |",
            "== \"json\"",
            "!= \"json\"",
            "\"sql\" =>",
            "\"sql\" |",
            "== \"sql\"",
            "!= \"sql\"",
            "\"dynamodb\" =>",
            "\"dynamodb\" |",
            "== \"dynamodb\"",
            "!= \"dynamodb\"",
        ],
        allowed: &["config"],
        reason: "no code outside config branches on a strategy's name: a strategy that is dropped in is no lesser one",
    },
    Absence {
        directory: "plugins",
        words: &["std::fs", "std::env", "std::net", "std::process", "thread::spawn"],
        allowed: &[],
        reason: "a strategy has what its capabilities lend it and nothing else",
    },
    Absence {
        directory: "model/src",
        words: &["std::fs", "std::env", "std::net", "std::process", "SystemTime::now", "Instant::now"],
        allowed: &[],
        reason: "the model is shared meaning: it reaches nothing and depends on no clock",
    },
];

/// Least versions in Cargo.lock, and why.
const LEAST_VERSIONS: &[(&str, [u64; 3], &str)] = &[
    ("cap-std", [4, 0, 3], "earlier ones let a path escape from its directory"),
    ("cap-primitives", [4, 0, 3], "earlier ones let a path escape from its directory"),
    ("wasmtime", [48, 0, 0], "48 is the long-term release"),
];
/// The first version of wasmtime that is no longer the long-term release.
const WASMTIME_BELOW: [u64; 3] = [49, 0, 0];

/// An interface, where its functions are tested, and what stands before their names there.
const TESTED: &[(&str, &str, &str)] = &[
    ("wit/repository.wit", "host/src/conformance.rs", ""),
    ("wit/files.wit", "tests/it/capabilities.rs", "files."),
    ("wit/sql.wit", "tests/it/capabilities.rs", "sql."),
];

/// A tracked file.
struct File {
    /// Relative to the workspace, with `/`.
    path: String,
    bytes: Vec<u8>,
}

/// Checks everything and lists all that was found.
pub(crate) fn run() -> Result<()> {
    let files = tracked_files()?;
    let found = findings(&files);
    if !found.is_empty() {
        bail!("{} untidy:\n  {}", found.len(), found.join("\n  "));
    }
    println!("tidy: {} files", files.len());
    Ok(())
}

fn tracked_files() -> Result<Vec<File>> {
    let root = root();
    let listed = output(Command::new("git").current_dir(&root).args(["ls-files", "-z"]))
        .context("the checks read the files that git tracks, so they need a clone")?;
    let mut files = Vec::new();
    for path in listed.split_terminator('\0') {
        let full = root.join(path);
        // A file may have been removed and the removal not yet be committed.
        if full.is_file() {
            let bytes = fs::read(&full).with_context(|| format!("cannot read {path}"))?;
            files.push(File { path: path.to_owned(), bytes });
        }
    }
    Ok(files)
}

fn findings(files: &[File]) -> Vec<String> {
    let mut found = untested(files);
    for file in files {
        found.extend(size(file));
        let Ok(text) = std::str::from_utf8(&file.bytes) else { continue };
        if file.path.ends_with(".rs") {
            found.extend(opening(&file.path, text));
            found.extend(absences(&file.path, text));
        }
        if file.path.ends_with(".md") {
            found.extend(dead_links(&file.path, text, |target| root().join(target).exists()));
        }
        if file.path == "Cargo.lock" {
            found.extend(versions(text));
        }
    }
    found
}

/// Functions of the contract that no case of the conformance suite says it is about, and functions of capabilities that
/// no test names. That a case calls what it is about is checked whenever it runs.
fn untested(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for (contract, tests, prefix) in TESTED {
        let text = |path: &str| {
            files.iter().find(|file| file.path == path).and_then(|file| std::str::from_utf8(&file.bytes).ok())
        };
        let (Some(functions), Some(suite)) = (text(contract).map(functions), text(tests)) else {
            found.push(format!("{contract} or {tests} is gone: is every function of the contract still tested?"));
            continue;
        };
        let missing = functions.iter().filter(|name| !suite.contains(&format!("\"{prefix}{name}\"")));
        found.extend(missing.map(|name| format!("{contract}: nothing in {tests} is about `{prefix}{name}`")));
    }
    found
}

/// The functions of an interface; those of a resource behind its name.
fn functions(wit: &str) -> Vec<String> {
    let mut functions = Vec::new();
    let mut resource = String::new();
    for line in wit.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("resource ").and_then(|rest| rest.strip_suffix(" {")) {
            resource = format!("{name}.");
        } else if line == "}" {
            resource.clear();
        } else if line.starts_with("constructor(") {
            functions.push(format!("{resource}constructor"));
        } else if let Some((name, rest)) = line.split_once(": ")
            && !line.starts_with("//")
            && (rest.starts_with("func(") || rest.starts_with("static func("))
        {
            functions.push(format!("{resource}{name}"));
        }
    }
    functions
}

fn size(file: &File) -> Option<String> {
    let bytes = file.bytes.len() as u64;
    (bytes > FILE_BYTES_MAX)
        .then(|| format!("{}: {bytes} bytes; generate what is larger than {FILE_BYTES_MAX}", file.path))
}

fn opening(path: &str, text: &str) -> Option<String> {
    (!text.starts_with("//! ") && !text.starts_with("/*!"))
        .then(|| format!("{path}:1: a file opens with `//!`: what lives here and why"))
}

fn absences(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for absence in ABSENCES {
        let Some(module) = path.strip_prefix(absence.directory).and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        let within =
            |allowed: &&str| module.strip_prefix(*allowed).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'));
        if absence.allowed.iter().any(within) {
            continue;
        }
        for (number, line) in code(path, text) {
            // A file name's extension may well be "json".
            let line = if line.contains("extension") { "" } else { line };
            if let Some(word) = absence.words.iter().find(|word| line.contains(**word)) {
                found.push(format!("{path}:{number}: `{word}`: {}", absence.reason));
            }
        }
    }
    found
}

/// The lines of code with their numbers: no comments, and no tests, which may do what the program may not.
fn code<'a>(path: &str, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
    let lines: Vec<&str> = if is_test { Vec::new() } else { text.lines().collect() };
    // A module of tests stands at the end of its file.
    let is_tests =
        |lines: &[&str]| lines[0] == "#[cfg(test)]" && lines[1].starts_with("mod ") && lines[1].ends_with('{');
    let end = lines.windows(2).position(is_tests).unwrap_or(lines.len());
    let code = lines.into_iter().take(end).enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.map(|(index, line)| (index + 1, line.split_once(" // ").map_or(line, |(before, _)| before)))
}

/// Relative links in Markdown that lead nowhere. Other sites are not asked.
fn dead_links(path: &str, text: &str, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let folder = Path::new(path).parent().expect("a file stands in a folder");
    let mut found = Vec::new();
    let mut in_example = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_example = !in_example;
        }
        if in_example {
            continue;
        }
        for link in line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(link, _)| link)) {
            let target = link.split('#').next().unwrap_or_default();
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !elsewhere && !exists(&folder.join(target)) {
                found.push(format!("{path}:{}: the link to {link} leads nowhere", index + 1));
            }
        }
    }
    found
}

fn versions(lock: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (package, least, reason) in LEAST_VERSIONS {
        let versions: Vec<[u64; 3]> = locked(lock, package).collect();
        if versions.is_empty() {
            found.push(format!("Cargo.lock: no {package}: has the rule about its version become pointless?"));
        }
        for version in versions {
            if version < *least || *package == "wasmtime" && version >= WASMTIME_BELOW {
                let [major, minor, patch] = version;
                found.push(format!("Cargo.lock: {package} {major}.{minor}.{patch}: {reason}"));
            }
        }
    }
    found
}

/// The versions of a package in the lock file.
fn locked<'a>(lock: &'a str, package: &'a str) -> impl Iterator<Item = [u64; 3]> + 'a {
    lock.split("[[package]]").filter_map(move |entry| {
        let value =
            |key: &str| entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
        if value("name") != Some(package) {
            return None;
        }
        let numbers = value("version")?.split(['.', '-', '+']).take(3).map(|number| number.parse().ok());
        numbers.collect::<Option<Vec<u64>>>()?.try_into().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_is_tidy() {
        if let Err(error) = run() {
            panic!("{error:#}");
        }
    }

    #[test]
    fn a_word_is_found_in_code_and_not_in_comments_tests_or_where_it_belongs() {
        let check = |path: &str, text: &str| absences(path, text).len();
        assert_eq!(check("host/src/query.rs", "//! A query.\nuse wasmtime::Engine;\n"), 1);
        assert_eq!(check("host/src/plugins.rs", "use wasmtime::Engine;\n"), 1);
        assert_eq!(check("host/src/plugin.rs", "use wasmtime::Engine;\n"), 0);
        assert_eq!(check("host/src/plugin/engine.rs", "use wasmtime::Engine;\n"), 0);
        assert_eq!(check("host/src/query.rs", "//! Not wasmtime.\n    // nor wasmtime\nlet a = 1; // wasmtime\n"), 0);
        assert_eq!(check("host/src/query.rs", "#[cfg(test)]\nmod tests {\n    use wasmtime::Engine;\n}\n"), 0);
        assert_eq!(check("host/src/query.rs", "#[cfg(test)]\nmod tests;\nuse wasmtime::Engine;\n"), 1);
        assert_eq!(check("host/src/query.rs", "match name { \"json\" => 1, _ => 2 }\n"), 1);
        assert_eq!(check("host/src/migration/plan.rs", "    eprintln!(\"{done}\");\n"), 1);
        assert_eq!(check("plugins/json/src/lib.rs", "std::fs::read(path)\n"), 1);
    }

    #[test]
    fn a_function_of_the_contract_without_a_case_is_found() {
        let contract = "interface repository {\n  get: func() -> x;\n  resource transaction {\n    get: func() -> x;\n    \
                        commit: static func() -> x;\n  }\n  begin: func() -> transaction;\n}\n";
        assert_eq!(functions(contract), ["get", "transaction.get", "transaction.commit", "begin"]);
        let replacement = "interface files {\n  resource replacement {\n    constructor(path: string);\n  }\n}\n";
        assert_eq!(functions(replacement), ["replacement.constructor"]);

        let (wit, suite, _) = TESTED[0];
        let check = |listed: &str| {
            let file = |path: &str, text: &str| File { path: path.into(), bytes: text.into() };
            untested(&[file(wit, contract), file(suite, listed)]).len() - (TESTED.len() - 1)
        };
        let all = "a::b [\"get\", \"begin\"];\na::c [\"transaction.get\", \"transaction.commit\"];\n";
        assert_eq!(check(all), 0);
        assert_eq!(check(&all.replace("transaction.get", "x")), 1);
        assert_eq!(check(&all.replace("\"get\"", "\"y\"")), 1);
        assert_eq!(check(&all.replace("begin", "x")), 1);
        assert_eq!(untested(&[]).len(), TESTED.len());
    }

    #[test]
    fn a_file_without_its_opening_is_found() {
        assert!(opening("a.rs", "use std::fmt;\n").is_some());
        assert!(opening("a.rs", "//! What lives here.\n").is_none());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let text = "[a](cli.md#x) [b](gone.md) [c](https://example.org/x) [d](#here)\n```\n[e](gone.md)\n```\n";
        let found = dead_links("docs/index.md", text, |target| target == Path::new("docs/cli.md"));
        assert_eq!(found, ["docs/index.md:1: the link to gone.md leads nowhere"]);
    }

    #[test]
    fn a_version_outside_its_bounds_is_found() {
        let lock = |cap: &str, wasmtime: &str| {
            let package =
                |name: &str, version: &str| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n\n");
            package("cap-std", cap) + &package("cap-primitives", "4.0.3") + &package("wasmtime", wasmtime)
        };
        assert_eq!(versions(&lock("4.0.3", "48.0.8")), Vec::<String>::new());
        assert_eq!(versions(&lock("4.0.2", "48.0.8")).len(), 1);
        assert_eq!(versions(&lock("4.1.0", "49.0.0")).len(), 1);
        assert_eq!(versions("").len(), 3);
    }

    #[test]
    fn a_file_that_should_be_generated_is_found() {
        let file = |bytes| File { path: "samples/data/large.json".into(), bytes: vec![b' '; bytes] };
        assert!(size(&file(FILE_BYTES_MAX as usize)).is_none());
        assert!(size(&file(FILE_BYTES_MAX as usize + 1)).is_some());
    }
}
