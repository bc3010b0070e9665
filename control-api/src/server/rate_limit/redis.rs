//! Counts in a Redis: the few words of its protocol (RESP2) that this takes, over one connection.
//!
//! All questions go down one connection one behind the other, as many at a time as there are. While there is no connection,
//! every question is answered with an error at once, so that whoever asks can go by its failure mode; it is made again with
//! back-off. A client of its own because it is two commands, and the crates for it bring a runtime's worth of features.

use super::store::Hit;
use std::{collections::VecDeque, fmt::Write as _, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

/// How long a Redis may take to be connected to, and to answer.
const PATIENCE: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// Questions that wait to be written.
const WAITING: usize = 16 << 10;
/// Bytes of a line of an answer.
const LONGEST_LINE: u64 = 4096;

/// Where a Redis is: `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisAddress {
    address: String,
    /// User (empty: none) and password.
    login: Option<(String, String)>,
    database: u32,
}

impl RedisAddress {
    /// Reads a URL.
    ///
    /// # Errors
    /// It is none of this kind.
    pub fn parse(url: &str) -> Result<Self, String> {
        let allowed = "allowed: redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]";
        let rest = url.strip_prefix("redis://").ok_or_else(|| format!("found another scheme; {allowed}"))?;
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => {
                let (user, password) = login.split_once(':').ok_or_else(|| format!("found no password; {allowed}"))?;
                (Some((user.to_owned(), password.to_owned())), rest)
            }
            None => (None, rest),
        };
        let (host, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = if database.is_empty() { Ok(0) } else { database.parse() };
        let database = database.map_err(|_| format!("found no number of a database; {allowed}"))?;
        let after_brackets = host.rfind(']').map_or(0, |at| at + 1);
        let address = match host[after_brackets..].rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
            Some(_) => return Err(format!("found no port; {allowed}")),
            None => format!("{host}:6379"),
        };
        if host.is_empty() || host.starts_with(':') {
            return Err(format!("found no host; {allowed}"));
        }
        Ok(Self { address, login, database })
    }
}

struct Question {
    commands: Vec<u8>,
    counts: usize,
    answer: oneshot::Sender<Result<Vec<u64>, String>>,
}

/// A Redis; dropping it ends the connection.
pub(super) struct Redis {
    questions: mpsc::Sender<Question>,
}

/// What is told of the connection.
pub(super) type Tell = Arc<dyn Fn(&str) + Send + Sync>;

impl Redis {
    pub fn start(address: RedisAddress, tell: Tell) -> Self {
        let (questions, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(address, waiting, tell));
        Self { questions }
    }

    pub async fn add(&self, hits: &[Hit], now: u64) -> Result<Vec<u64>, String> {
        let mut commands = Vec::with_capacity(hits.len() * 160);
        for Hit { key, window, hits } in hits {
            let window = (*window).max(1);
            let start = (now - now % window).to_string();
            let key = [&key[..], b"_", start.as_bytes()].concat();
            command(&mut commands, &[b"INCRBY", &key, hits.to_string().as_bytes()]);
            // For as long as the window lasts, and a little more for clocks that go wrong.
            command(&mut commands, &[b"EXPIRE", &key, (window + 5).to_string().as_bytes()]);
        }
        let (answer, answered) = oneshot::channel();
        let question = Question { commands, counts: hits.len(), answer };
        self.questions.try_send(question).map_err(|_| "too many questions wait for Redis".to_owned())?;
        match timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("the connection to Redis broke".to_owned()),
            Err(_) => Err("Redis does not answer".to_owned()),
        }
    }
}

fn command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// Keeps a connection until nobody can ask any more.
async fn run(address: RedisAddress, mut questions: mpsc::Receiver<Question>, tell: Tell) {
    let mut backoff = FIRST_BACKOFF;
    let mut told = String::new();
    loop {
        let error = match timeout(PATIENCE, connect(&address)).await {
            Ok(Ok(stream)) => {
                tell(&format!("Redis at {}: connected", address.address));
                backoff = FIRST_BACKOFF;
                told.clear();
                match converse(stream, &mut questions).await {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "does not answer".to_owned(),
        };
        if told != error {
            tell(&format!(
                "Redis at {}: {error}; every question is answered with an error until it is back",
                address.address
            ));
            told.clone_from(&error);
        }
        // Refuses meanwhile.
        let wait = sleep(backoff / 2 + backoff.mul_f64(fastrand::f64() / 2.0));
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => break,
                question = questions.recv() => match question {
                    Some(question) => drop(question.answer.send(Err(format!("Redis: {error}")))),
                    None => return,
                },
            }
        }
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

async fn connect(address: &RedisAddress) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(&address.address).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut hello = Vec::new();
    let mut expected = 0;
    if let Some((user, password)) = &address.login {
        let parts: &[&[u8]] = &[b"AUTH", user.as_bytes(), password.as_bytes()];
        if user.is_empty() {
            command(&mut hello, &[parts[0], parts[2]])
        } else {
            command(&mut hello, parts)
        }
        expected += 1;
    }
    if address.database > 0 {
        command(&mut hello, &[b"SELECT", address.database.to_string().as_bytes()]);
        expected += 1;
    }
    command(&mut hello, &[b"PING"]);
    stream.get_mut().write_all(&hello).await?;
    for _ in 0..=expected {
        if let Reply::Error(error) = reply(&mut stream).await? {
            return Err(io::Error::other(error));
        }
    }
    Ok(stream)
}

/// Asks and hears until the connection breaks; `Ok` once nobody can ask any more.
async fn converse(stream: BufReader<TcpStream>, questions: &mut mpsc::Receiver<Question>) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    let mut unanswered: VecDeque<Question> = VecDeque::new();
    let mut batch = Vec::new();
    // Since when there is something to hear.
    let mut since = Instant::now();
    loop {
        tokio::select! {
            biased;
            heard = reader.fill_buf() => {
                if heard?.is_empty() {
                    return Err(io::Error::other("closed the connection"));
                }
                while !reader.buffer().is_empty() {
                    let Some(question) = unanswered.pop_front() else {
                        return Err(io::Error::other("said something that it was not asked"));
                    };
                    let answer = timeout(PATIENCE, answer_to(&mut reader, question.counts)).await;
                    // Whoever asked may have gone.
                    let _ = question.answer.send(answer.map_err(|_| silent())??);
                }
                since = Instant::now();
            }
            count = questions.recv_many(&mut batch, 1024) => {
                if count == 0 {
                    return Ok(());
                }
                let commands: Vec<u8> = batch.iter().flat_map(|question| &question.commands).copied().collect();
                if unanswered.is_empty() {
                    since = Instant::now();
                }
                unanswered.extend(batch.drain(..));
                timeout(PATIENCE, writer.write_all(&commands)).await.map_err(|_| silent())??;
            }
            () = sleep_until(since + PATIENCE), if !unanswered.is_empty() => return Err(silent()),
        }
    }
}

fn silent() -> io::Error {
    io::Error::other("does not answer")
}

/// The sums that a question asked for; an error that Redis answers is one of the question only.
async fn answer_to(reader: &mut (impl AsyncBufRead + Unpin), counts: usize) -> io::Result<Result<Vec<u64>, String>> {
    let mut sums = Ok(Vec::with_capacity(counts));
    for i in 0..counts * 2 {
        match (reply(reader).await?, &mut sums) {
            (Reply::Error(error), _) => sums = Err(format!("Redis: {error}")),
            (Reply::Number(sum), Ok(sums)) if i % 2 == 0 => sums.push(u64::try_from(sum).unwrap_or(0)),
            _ => {}
        }
    }
    Ok(sums)
}

enum Reply {
    Number(i64),
    Text,
    Error(String),
}

async fn reply(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Reply> {
    let mut line = Vec::new();
    reader.take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    let broken = || io::Error::other("said something that is not its protocol");
    let (kind, text) = line.strip_suffix(b"\r\n").and_then(|line| line.split_first()).ok_or_else(broken)?;
    let text = String::from_utf8_lossy(text);
    match kind {
        b'+' => Ok(Reply::Text),
        b':' => text.parse().map(Reply::Number).map_err(|_| broken()),
        b'-' => {
            let mut plain = String::new();
            for c in text.chars() {
                let _ = if c.is_control() { write!(plain, "{}", c.escape_default()) } else { write!(plain, "{c}") };
            }
            Ok(Reply::Error(plain))
        }
        _ => Err(broken()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let read = |url: &str| RedisAddress::parse(url).map(|r| (r.address, r.login, r.database));
        let login = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(read("redis://h"), Ok(("h:6379".into(), None, 0)));
        assert_eq!(read("redis://:p@h:1/2"), Ok(("h:1".into(), login("", "p"), 2)));
        assert_eq!(read("redis://u:p@[::1]"), Ok(("[::1]:6379".into(), login("u", "p"), 0)));
        for bad in ["h:1", "redis://", "redis://:1", "redis://h:x", "redis://h/x", "redis://u@h", "rediss://h"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn answers_are_sums_or_an_error_of_their_own() {
        let mut said: &[u8] = b":3\r\n:1\r\n:9\r\n:0\r\n-OOM no room\r\n:0\r\n$5\r\n";
        assert_eq!(answer_to(&mut said, 2).await.expect("read"), Ok(vec![3, 9]));
        assert_eq!(answer_to(&mut said, 1).await.expect("read"), Err("Redis: OOM no room".into()));
        assert!(answer_to(&mut said, 1).await.is_err());
        assert!(answer_to(&mut &b":1"[..], 1).await.is_err());
    }
}
