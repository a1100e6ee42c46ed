//! The program: parse, run, render one error, exit.

use std::process::ExitCode;

use clap::Parser;
use larder::cli::{self, Cli};
use larder::{command, exit, output};

#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let (format, error) = match Cli::try_parse() {
        Ok(cli) => {
            let format = cli.format;
            match command::run(cli) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(error) => (format, error),
            }
        }
        Err(refused) => match cli::usage_error(&refused, std::env::args_os()) {
            Some(error) => (cli::Format::Json, error),
            // Help and version, and mistakes as people read them.
            None => refused.exit(),
        },
    };
    output::error(format, &error);
    ExitCode::from(exit::code(&error))
}
