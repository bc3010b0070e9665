//! The weft binary.

use std::process::ExitCode;
use weft_proxy::server::{
    boot,
    cli::{Command, Options},
    quickstart,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Options::parse_from_args(std::env::args_os()) {
        Ok(Options { command: Some(Command::Quickstart(options)), .. }) => quickstart::run(&options),
        Ok(options) => boot::run(options),
        Err(exit) => boot::exit(&exit),
    }
}
