//! The ports of the mesh, by name: an offset from the gateway's for each.

use std::net::{Ipv4Addr, TcpListener};

/// By name, as templates call them, with the offset.
const PORTS: [(&str, u16, &str); 11] = [
    ("gateway", 0, "the gateway"),
    ("gateway-admin", 1, "the gateway's admin API"),
    ("control", 2, "the control plane"),
    ("a-inbound", 10, "sidecar a's inbound listener"),
    ("a-outbound", 11, "sidecar a's outbound listener"),
    ("sidecar-a-admin", 12, "sidecar a's admin API"),
    ("a-service", 13, "service a"),
    ("b-inbound", 20, "sidecar b's inbound listener"),
    ("b-outbound", 21, "sidecar b's outbound listener"),
    ("sidecar-b-admin", 22, "sidecar b's admin API"),
    ("b-service", 23, "service b"),
];

/// The ports of one mesh.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    base: u16,
}

impl Ports {
    /// The ports from the gateway's, `base`, on.
    pub fn new(base: u16) -> Result<Self, String> {
        match base {
            1..=65_512 => Ok(Self { base }),
            _ => Err(format!("--port {base}: allowed are 1 to 65512, as 24 ports from there on are used")),
        }
    }

    /// The gateway's.
    pub fn base(self) -> u16 {
        self.base
    }

    /// The port of this name.
    pub fn of(self, name: &str) -> u16 {
        let offset = PORTS.iter().find(|(known, ..)| *known == name).map_or(0, |(_, offset, _)| *offset);
        self.base + offset
    }

    /// `127.0.0.1:PORT`.
    pub fn address(self, name: &str) -> String {
        format!("127.0.0.1:{}", self.of(name))
    }

    /// A template with the numbers instead of the names: `${gateway}`.
    pub fn fill(self, template: &str) -> String {
        PORTS.iter().fold(template.to_owned(), |text, (name, offset, _)| {
            text.replace(&format!("${{{name}}}"), &(self.base + offset).to_string())
        })
    }

    /// Says which ports are taken, before anything is started.
    pub fn check_free(self) -> Result<(), String> {
        let ports = PORTS.iter().map(|(_, offset, what)| (self.base + offset, what));
        let taken: Vec<_> = ports
            .filter_map(|(port, what)| Some((port, what, TcpListener::bind((Ipv4Addr::LOCALHOST, port)).err()?)))
            .collect();
        match taken.first() {
            None => Ok(()),
            Some((port, what, error)) => {
                let others = match taken.len() {
                    1 => String::new(),
                    n => format!(" ({} more are taken, too)", n - 1),
                };
                Err(format!("port {port} is not free for {what}: {error}{others}; choose others with --port"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled() {
        let ports = Ports::new(20_000).unwrap();
        assert_eq!(ports.fill("${gateway} ${b-service} ${other}"), "20000 20023 ${other}");
        assert!(Ports::new(65_513).is_err() && Ports::new(0).is_err());
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let Ok(ports) = Ports::new(port) else { return };
        let why = ports.check_free().unwrap_err();
        assert!(why.starts_with(&format!("port {port} is not free for the gateway")), "{why}");
    }
}
