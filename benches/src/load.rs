//! The load generator: one thread that keeps a proxy busy, each way of it a file.

pub mod bulk;
pub mod closed;
pub mod idle;
pub mod open;
pub mod spread;

use crate::talk::{
    Client,
    wire::{Connection, Readiness},
};
use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Makes a client's side of a connection, and appends what opens it.
pub type Open<'a, C> = &'a dyn Fn(&mut Vec<u8>) -> C;

/// How a measurement goes.
#[derive(Clone, Copy)]
pub struct Plan {
    pub to: SocketAddr,
    pub connections: usize,
    /// Requests at a time on one connection.
    pub depth: usize,
    /// One request a connection; `depth` is 1 then.
    pub once: bool,
    pub warm: Duration,
    pub length: Duration,
}

/// What was measured between the end of the warming and the end.
pub struct Outcome {
    pub requests: u64,
    pub elapsed: Duration,
    /// CPU time of the process under load.
    pub cpu: Duration,
}

struct Load<C> {
    readiness: Readiness,
    connections: Vec<Connection<C>>,
}

impl<C: Client> Load<C> {
    fn connect(plan: &Plan, open: Open<'_, C>) -> Result<Self, String> {
        let readiness = Readiness::new().map_err(|e| e.to_string())?;
        let connections = (0..plan.connections)
            .map(|token| Self::one(&readiness, token, plan, open))
            .collect::<Result<_, String>>()?;
        Ok(Self { readiness, connections })
    }

    fn one(readiness: &Readiness, token: usize, plan: &Plan, open: Open<'_, C>) -> Result<Connection<C>, String> {
        let stream = TcpStream::connect(plan.to).map_err(|e| format!("{}: {e}", plan.to))?;
        let mut out = Vec::new();
        let session = open(&mut out);
        let mut connection = Connection::new(stream, session).map_err(|e| e.to_string())?;
        connection.out = out;
        readiness.add(&connection, token).map_err(|e| e.to_string())?;
        Ok(connection)
    }

    /// Ends a connection and makes another in its place.
    fn renew(&mut self, token: usize, plan: &Plan, open: Open<'_, C>) -> Result<(), String> {
        let old = &mut self.connections[token];
        old.session.end(&mut old.out);
        old.flush()?;
        self.connections[token] = Self::one(&self.readiness, token, plan, open)?;
        Ok(())
    }

    fn begin(&mut self, token: usize, count: usize) -> Result<(), String> {
        let connection = &mut self.connections[token];
        for _ in 0..count {
            connection.session.begin(&mut connection.out);
        }
        connection.flush()
    }
}
