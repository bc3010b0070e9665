//! System calls of a proxy, counted by `strace` while it works: never in a run whose time counts.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

/// One counting: begun by the first [`turn`](Self::turn), ended by the second.
pub struct Trace {
    process: u32,
    state: RefCell<State>,
}

enum State {
    Before,
    Running(Child, BufReader<ChildStderr>),
    Done(Result<BTreeMap<String, u64>, String>),
}

impl Trace {
    pub fn new(process: u32) -> Self {
        Self { process, state: RefCell::new(State::Before) }
    }

    /// Begins, then ends. Takes the place of reading the CPU time, which is no measure under strace.
    pub fn turn(&self) -> Duration {
        let mut state = self.state.borrow_mut();
        *state = match std::mem::replace(&mut *state, State::Before) {
            State::Before => match self.attach() {
                Ok((child, output)) => State::Running(child, output),
                Err(why) => State::Done(Err(why)),
            },
            State::Running(child, output) => State::Done(end(child, output)),
            State::Done(result) => State::Done(result),
        };
        Duration::ZERO
    }

    fn attach(&self) -> Result<(Child, BufReader<ChildStderr>), String> {
        let mut child = Command::new("strace")
            .args(["-c", "-f", "-p", &self.process.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("skipped: no strace: {e}"))?;
        let mut output = BufReader::new(child.stderr.take().ok_or("no output")?);
        let mut line = String::new();
        output.read_line(&mut line).map_err(|e| e.to_string())?;
        if !line.contains("attached") {
            let _ = child.wait();
            return Err(format!("skipped: {}", line.trim()));
        }
        Ok((child, output))
    }

    /// Calls by name.
    ///
    /// # Errors
    /// There is no strace, or it may not.
    pub fn counts(self) -> Result<BTreeMap<String, u64>, String> {
        match self.state.into_inner() {
            State::Done(result) => result,
            _ => Err("it did not end".into()),
        }
    }
}

fn end(mut child: Child, mut output: BufReader<ChildStderr>) -> Result<BTreeMap<String, u64>, String> {
    if let Some(id) = rustix::process::Pid::from_raw(child.id() as i32) {
        rustix::process::kill_process(id, rustix::process::Signal::INT).map_err(|e| e.to_string())?;
    }
    let mut text = String::new();
    output.read_to_string(&mut text).map_err(|e| e.to_string())?;
    child.wait().map_err(|e| e.to_string())?;
    Ok(table(&text))
}

/// Reads the table: `% time, seconds, usecs/call, calls, [errors,] syscall`.
fn table(text: &str) -> BTreeMap<String, u64> {
    let rows = text.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, _, _, calls, .., name] = words[..] else { return None };
        (name != "total").then_some((name.to_owned(), calls.parse().ok()?))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let text = "strace: Process 1 detached\n% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                     60.00    0.000600           1       400        10 recvfrom\n 40.00    0.000400           2       200           sendto\n\
                    ------ ----------- ----------- --------- --------- ----------------\n100.00    0.001000           1       600        10 total\n";
        let counts = table(text);
        assert_eq!((counts.len(), counts["recvfrom"], counts["sendto"]), (2, 400, 200));
    }
}
