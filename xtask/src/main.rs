//! The project's own commands, so that a fresh machine needs Rust and a C compiler and nothing else. Each is a list of
//! ordinary commands, printed before they run ([`shell`]); what is built and where it lands is in [`artifacts`].

mod artifacts;
mod bench;
mod check;
mod data;
mod demo;
mod deny;
mod dist;
mod dynamodb;
mod fuzz;
mod postgres;
mod processes;
mod shell;
mod soak;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo              build everything and migrate the sample data from JSON to SQLite, in target/demo
  test [ARGS]       build everything, start a PostgreSQL and a DynamoDB engine and run all tests; ARGS go to `cargo test`
  postgres          a PostgreSQL to try things with, until Ctrl-C; the tests use one that LARDER_TEST_POSTGRES,
                    LARDER_TEST_POSTGRES_SUPERUSER (URLs) and LARDER_TEST_POSTGRES_BIN (its programs) name
  dynamodb          an engine that answers as DynamoDB does, to try things with, until Ctrl-C; the tests use those that
                    LARDER_TEST_DYNAMODB, LARDER_TEST_MOTO (URLs) and LARDER_TEST_DYNAMODB_BIN (its program) name
  soak --seconds N  random operations on every strategy for N seconds, against a reference in memory
  crash --kills N   kill processes while they write, and look for what was acknowledged
  contention        16 processes at one store: 16,000 saves, 4,000 counts, a writer beside readers
  faults            let every call of every plugin to the host go wrong, in every way
  fuzz [TARGET] [--seconds N]
                    look for bytes that whatever reads data of others does not take, for ten minutes each
  interruptions --kills N
                    kill migrations while they run, go on with them, and look for what is missing
  pairs             20,000 entities that are easy to damage from every kind of store to every other one
  clients           64 clients at once at PostgreSQL, for a minute
  endurance --calls N
                    N calls, of which one in a hundred traps or overruns its time: what the host holds at the end
  check             formatting, tidy, dependencies, lints and documentation
  ci                check, then test
  tidy              the rules that the compiler and clippy cannot check
  plugins           build the plugins into target/plugins
  bench [--quick] [--only SUBJECT]
                    measure, and write the tables of docs/performance.md
  dist              a release build of host and plugins in target/dist
  data machines --count N --out FILE [--seed N]
                    a document of N machines with their requests and templates
  data hostfactory --out FILE [--seed N]
                    a document as a real installation writes it: 2,550 entities";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments {
        ["demo"] => demo::run_demo(),
        ["test", ref rest @ ..] => test::run_tests(rest),
        ["postgres", ref rest @ ..] => postgres::run_in_foreground(rest),
        ["dynamodb", ref rest @ ..] => dynamodb::run_in_foreground(rest),
        ["soak", ref rest @ ..] => soak::run(rest),
        ["crash", ref rest @ ..] => processes::crash(rest),
        ["contention", ref rest @ ..] => processes::contention(rest),
        ["faults", ref rest @ ..] => processes::faults(rest),
        ["fuzz", ref rest @ ..] => fuzz::fuzz(rest),
        ["interruptions", ref rest @ ..] => processes::interruptions(rest),
        ["pairs", ref rest @ ..] => processes::pairs(rest),
        ["clients", ref rest @ ..] => processes::clients(rest),
        ["endurance", ref rest @ ..] => processes::endurance(rest),
        ["check"] => check::run_checks(),
        ["ci"] => check::run_checks().and_then(|()| test::run_tests(&[])),
        ["tidy"] => tidy::run(),
        ["plugins"] => artifacts::build_plugins().map(drop),
        ["bench", ref rest @ ..] => bench::run_benchmarks(rest),
        ["dist"] => dist::run(),
        ["data", ref rest @ ..] => data::run(rest),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [] => bail!("no command\n\n{USAGE}"),
        [command, ..] => bail!("unknown command or too many arguments: {command}\n\n{USAGE}"),
    }
}
