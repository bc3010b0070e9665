//! What a local rate limit costs a request, in instructions: `cargo bench -p weft-benches --bench limits`; with `-- --check` it
//! fails where asking a bucket costs more than [`MOST`].
//!
//! The program runs itself under callgrind, once for each case, and counts what is below [`measured`] only: the numbers
//! are the same on every machine of one architecture, whatever else it does.
#![allow(clippy::print_stdout)] // the table is what this program is for

#[path = "measure/callgrind.rs"]
mod callgrind;

use std::{env, process::ExitCode, time::Instant};
use weft_config::{Context, rate_limit::LocalRateLimit};
use weft_control_api::{
    EncodeOptions, Message as _, encode, envoy::extensions::filters::http::local_ratelimit::v3 as pb, yaml,
};
use weft_proxy::{filters::local_ratelimit::Limiter, route::Descriptor};

/// Fifty nanoseconds, at two instructions a nanosecond; of a bucket without descriptors.
const MOST: u64 = 100;
/// Checks in one measurement.
const ROUNDS: u64 = 1_000;

/// The filter's descriptors.
const CASES: [(&str, &str); 4] = [
    ("a bucket", "[]"),
    ("a bucket that is empty", "[]"),
    ("a descriptor", "[{entries: [{key: user, value: ann}], token_bucket: {max_tokens: 4000000, fill_interval: 1s}}]"),
    ("a wildcard", "[{entries: [{key: user}], token_bucket: {max_tokens: 4000000, fill_interval: 1s}}]"),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    if let ["--case", case] = words[..] {
        run(case.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    println!("{:24}{:>12}", "instructions a check", "");
    let mut missed = false;
    for (i, (name, descriptors)) in CASES.iter().enumerate() {
        let Some(total) = callgrind::count(&["--case", &i.to_string()]) else {
            println!("skipped: there is no valgrind");
            return ExitCode::SUCCESS;
        };
        let each = total / ROUNDS;
        let over = *descriptors == "[]" && each > MOST;
        missed |= over;
        println!("{name:24}{each:>12}{}", if over { "  missed" } else { "" });
    }
    if words.contains(&"--check") && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn run(case: usize) {
    let (name, descriptors) = CASES[case];
    let tokens = if name.ends_with("empty") { 1 } else { 4_000_000 };
    let text = format!(
        "{{stat_prefix: b, token_bucket: {{max_tokens: {tokens}, fill_interval: 3600s}}, descriptors: {descriptors}}}"
    );
    let limiter = limiter(&text);
    let entries = [("user", b"ann".as_slice().into())].into_iter().collect();
    let all = [Descriptor { entries, ..Descriptor::default() }];
    let asked = if limiter.has_descriptors() { &all[..] } else { &[] };
    let now = Instant::now();
    limiter.check(asked, now);
    assert_eq!(limiter.check(asked, now).allowed, tokens > 1);
    measured(&limiter, asked, now);
}

#[inline(never)]
fn measured(limiter: &Limiter, asked: &[Descriptor<'_>], now: Instant) {
    for _ in 0..ROUNDS {
        std::hint::black_box(limiter.check(std::hint::black_box(asked), std::hint::black_box(now)).allowed);
    }
}

fn limiter(text: &str) -> Limiter {
    let node = yaml::parse(text).expect("YAML");
    let name = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    let encoded = encode(node, name, EncodeOptions::default()).expect("a filter");
    let p = pb::LocalRateLimit::decode(&*encoded.bytes).expect("a filter");
    let mut cx = Context::new();
    let config = LocalRateLimit::from_proto(p, false, &mut cx);
    Limiter::new(&cx.finish(config).expect("no problems").0, Instant::now())
}
