//! Which address of the host where a snapshot was taken stands for which one of this host.
//!
//! A rule is written `OLD:NEW`, with IPv6 addresses in brackets. What was bound to the one is bound to the other when it is
//! resumed.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub from: IpAddr,
    pub to: IpAddr,
}

/// What is wrong with the text of a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    #[error("is not two addresses with a colon between them")]
    NotTwo,
    #[error("{0:?} is not an IP address; those of IPv6 stand in brackets")]
    NotAnAddress(String),
    #[error("an address of IPv4 and one of IPv6 cannot stand for one another")]
    Families,
}

impl FromStr for Move {
    type Err = MoveError;

    fn from_str(text: &str) -> Result<Self, MoveError> {
        let end = match text.starts_with('[') {
            true => text.find(']').map(|at| at + 1),
            false => text.find(':'),
        };
        let (from, rest) = text.split_at(end.ok_or(MoveError::NotTwo)?);
        let to = rest.strip_prefix(':').ok_or(MoveError::NotTwo)?;
        let (from, to) = (address(from)?, address(to)?);
        match from.is_ipv4() == to.is_ipv4() {
            true => Ok(Self { from, to }),
            false => Err(MoveError::Families),
        }
    }
}

fn address(text: &str) -> Result<IpAddr, MoveError> {
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let parsed = match inner {
        Some(inner) => inner.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    };
    parsed.ok_or_else(|| MoveError::NotAnAddress(text.to_owned()))
}

/// As it is written.
impl fmt::Display for Move {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => write!(formatter, "[{from}]:[{to}]"),
            (from, to) => write!(formatter, "{from}:{to}"),
        }
    }
}

impl Move {
    /// Whether it moves what is bound to this. An address of IPv4 that a socket of IPv6 is bound to is one of IPv4.
    pub fn is_about(&self, bound: IpAddr) -> bool {
        self.from == bound.to_canonical()
    }

    /// Where what is bound to this is to be bound.
    pub fn applied(&self, bound: IpAddr) -> IpAddr {
        match (bound, self.to) {
            (IpAddr::V6(_), IpAddr::V4(to)) => to.to_ipv6_mapped().into(),
            (_, to) => to,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_rule_is_two_addresses_of_one_family() {
        for (text, expected) in [
            ("10.0.0.1:10.0.0.2", Ok(("10.0.0.1", "10.0.0.2"))),
            ("[2001:db8::1]:[::1]", Ok(("2001:db8::1", "::1"))),
            ("10.0.0.1", Err(MoveError::NotTwo)),
            ("", Err(MoveError::NotTwo)),
            ("[::1]10.0.0.1", Err(MoveError::NotTwo)),
            ("10.0.0.1:[::1]", Err(MoveError::Families)),
            ("host:10.0.0.1", Err(MoveError::NotAnAddress("host".into()))),
            (
                "10.0.0.1:10.0.0.2:80",
                Err(MoveError::NotAnAddress("10.0.0.2:80".into())),
            ),
            ("::1:::2", Err(MoveError::NotAnAddress(String::new()))),
            ("[::1:[::2", Err(MoveError::NotTwo)),
        ] {
            let expected = expected.map(|(from, to)| Move {
                from: ip(from),
                to: ip(to),
            });
            assert_eq!(text.parse::<Move>(), expected, "{text}");
        }
    }

    #[test]
    fn a_rule_is_about_one_address_in_whichever_family_a_socket_has_it() {
        for (rule, bound, expected) in [
            ("10.0.0.1:10.0.0.2", "10.0.0.1", Some("10.0.0.2")),
            (
                "10.0.0.1:10.0.0.2",
                "::ffff:10.0.0.1",
                Some("::ffff:10.0.0.2"),
            ),
            ("[::2]:[::3]", "::2", Some("::3")),
            ("10.0.0.1:10.0.0.2", "0.0.0.0", None),
            ("10.0.0.1:10.0.0.2", "10.0.0.2", None),
        ] {
            let one: Move = rule.parse().expect("it is one");
            assert_eq!(one.to_string(), rule);
            let found = one.is_about(ip(bound)).then(|| one.applied(ip(bound)));
            assert_eq!(found, expected.map(ip), "{rule} {bound}");
        }
    }
}
