//! Hosts that a store may connect to, as a grant names them. What a name leads to is none of this module's business: that
//! is decided where it is resolved, each time.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::written;
use crate::error::{Error, Result};

/// The longest name that DNS knows.
const NAME_BYTES_MAX: usize = 253;

/// TCP connections to these hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpGrant {
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// Whether a name may lead to an address that is not public.
    pub private: bool,
}

/// HTTP requests to these origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGrant {
    /// At least one.
    pub origins: Vec<Origin>,
    /// Whether a name may lead to an address that is not public.
    pub private: bool,
}

/// Where a request goes, without a path. Shown as it would be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Whether it is `https`.
    pub is_encrypted: bool,
    /// The host and its port.
    pub endpoint: Endpoint,
}

/// A host and a port. Shown as it would be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub host: HostName,
    /// Its port, never 0.
    pub port: u16,
}

/// A host, by its name or by its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostName {
    /// In lower case, without a dot at its end.
    Name(String),
    /// An IPv4 address that is written as an IPv6 one is an IPv4 address.
    Address(IpAddr),
}

impl HostName {
    /// None for what is neither a name nor an address. An IPv6 address may stand in brackets, as in a URL.
    pub fn parse(text: &str) -> Option<HostName> {
        if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return address.parse::<Ipv6Addr>().ok().map(|it| HostName::Address(IpAddr::V6(it).to_canonical()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(HostName::Address(address.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        // What ends in a number is an address to many a resolver: `127.1` is 127.0.0.1, and so is `0x7f000001`.
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        let is_name = name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label) && !is_number;
        is_name.then_some(HostName::Name(name))
    }
}

impl Endpoint {
    fn parse(text: &str) -> Option<Endpoint> {
        let (host, port) = text.rsplit_once(':')?;
        // Without brackets it could not be told where an IPv6 address ends.
        if host.contains(':') && !host.starts_with('[') {
            return None;
        }
        Some(Endpoint { host: HostName::parse(host)?, port: parse_port(port)? })
    }
}

impl Origin {
    fn parse(text: &str) -> Option<Origin> {
        let (scheme, authority) = text.split_once("://")?;
        let is_encrypted = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let endpoint = if has_port {
            Endpoint::parse(authority)?
        } else {
            Endpoint { host: HostName::parse(authority)?, port: Origin::default_port(is_encrypted) }
        };
        Some(Origin { is_encrypted, endpoint })
    }

    /// The port of an origin that names none.
    pub fn default_port(is_encrypted: bool) -> u16 {
        if is_encrypted { 443 } else { 80 }
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port != 0)
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostName::Name(name) => f.write_str(name),
            HostName::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            HostName::Address(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        if self.endpoint.port == Origin::default_port(self.is_encrypted) {
            write!(f, "{scheme}://{}", self.endpoint.host)
        } else {
            write!(f, "{scheme}://{}", self.endpoint)
        }
    }
}

/// The hosts that a grant names.
pub(super) fn tcp_grant(at: &str, written: &written::TcpGrant) -> Result<TcpGrant> {
    let endpoints = parse_all(at, &written.allow, Endpoint::parse, "a host with its port").map_err(|error| {
        error.hint(
            "write it as `cache.example.org:6379`, `10.0.0.5:6379` or `[2001:db8::5]:6379`; there are no patterns",
        )
    })?;
    Ok(TcpGrant { endpoints, private: written.private })
}

/// The origins that a grant names.
pub(super) fn http_grant(at: &str, written: &written::HttpGrant) -> Result<HttpGrant> {
    let origins = parse_all(at, &written.allow, Origin::parse, "an origin").map_err(|error| {
        error.hint(
            "write it as `https://api.example.org` or `http://127.0.0.1:8080`: a scheme, a host and perhaps a port, \
             without a path, a user or a pattern",
        )
    })?;
    Ok(HttpGrant { origins, private: written.private })
}

/// The message names the place and not the text: somebody may have written a password into it.
fn parse_all<T>(at: &str, written: &[String], parse: fn(&str) -> Option<T>, what: &str) -> Result<Vec<T>> {
    let parse = |(index, text): (usize, &String)| {
        parse(text).ok_or_else(|| Error::config(format!("`{at}.allow.{index}` is not {what}")))
    };
    written.iter().enumerate().map(parse).collect()
}

/// What an address is to a plugin that comes to it by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Anybody's: on the Internet.
    Public,
    /// This machine.
    Loopback,
    /// A network of one's own.
    Private,
    /// No place for a name to lead to: link-local with the metadata services of clouds, multicast, and all that is reserved.
    Special,
}

impl Reach {
    /// What `address` is.
    pub fn of(address: IpAddr) -> Reach {
        match address.to_canonical() {
            IpAddr::V4(address) => Reach::of_v4(address),
            IpAddr::V6(address) => Reach::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Reach {
        // Services of clouds that answer any program on a machine with its credentials and lie in no special range.
        const METADATA: [Ipv4Addr; 3] =
            [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
        match address.octets() {
            _ if METADATA.contains(&address) => Reach::Special,
            [127, ..] => Reach::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Reach::Private,
            // This network, link-local, protocol assignments, documentation, 6to4, benchmarks, multicast and beyond.
            [0, ..] | [169, 254, ..] | [192, 0, 0 | 2, _] | [192, 88, 99, _] => Reach::Special,
            [198, 18..=19, ..] | [198, 51, 100, _] | [203, 0, 113, _] | [224..=255, ..] => Reach::Special,
            _ => Reach::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Reach {
        const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
        match address.segments() {
            _ if address == METADATA => Reach::Special,
            [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Loopback,
            [0xfc00..=0xfdff, ..] => Reach::Private,
            // Of what is handed out, that which carries an IPv4 address (Teredo, 6to4), documentation and ORCHID.
            [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => Reach::Special,
            [0x2000..=0x3fff, ..] => Reach::Public,
            _ => Reach::Special,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_origins_are_read_and_shown_as_they_would_be_written() {
        for (text, shown) in [
            ("cache.example.org:6379", "cache.example.org:6379"),
            ("Cache.Example.org.:6379", "cache.example.org:6379"),
            ("10.0.0.5:9000", "10.0.0.5:9000"),
            ("[::1]:1", "[::1]:1"),
            ("[::ffff:10.0.0.5]:1", "10.0.0.5:1"),
            ("localhost:65535", "localhost:65535"),
        ] {
            assert_eq!(Endpoint::parse(text).expect(text).to_string(), shown);
        }
        for text in [
            "cache",
            ":1",
            "cache:",
            "cache:0",
            "cache:65536",
            "cache:+1",
            "cache:x",
            "::1:1",
            "a..b:1",
            "*.example.org:1",
            "a/b:1",
            "a b:1",
            "größe.de:1",
            "127.1:1",
            "1:1",
            "0x7f000001:1",
            "[10.0.0.5]:1",
            "[cache]:1",
            "user@cache:1",
        ] {
            assert_eq!(Endpoint::parse(text), None, "{text}");
        }
        for (text, shown) in [
            ("https://api.example.org", "https://api.example.org"),
            ("HTTPS://API.example.org:443", "https://api.example.org"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]", "http://[::1]"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(Origin::parse(text).expect(text).to_string(), shown);
        }
        for text in
            ["api.example.org", "ftp://a", "https://", "https://a/", "https://a/b", "https://u:p@a", "https://a:0"]
        {
            assert_eq!(Origin::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_address_is_public_only_where_it_is_on_the_internet() {
        for (reach, addresses) in [
            (
                Reach::Public,
                &["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::5"][..],
            ),
            (Reach::Loopback, &["127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1"]),
            (Reach::Private, &["10.1.2.3", "172.16.0.1", "172.31.255.1", "192.168.0.1", "100.64.0.1", "fd12::1"]),
            (
                Reach::Special,
                &[
                    "0.0.0.0",
                    "169.254.169.254",
                    "100.100.100.200",
                    "168.63.129.16",
                    "224.0.0.1",
                    "255.255.255.255",
                    "198.18.0.1",
                    "203.0.113.5",
                    "::",
                    "fe80::1",
                    "ff02::1",
                    "fd00:ec2::254",
                    "2001:db8::1",
                    "64:ff9b::a00:1",
                    "2002:a00:1::1",
                    "2001:0:1::1",
                    "::10.0.0.1",
                    "::ffff:169.254.169.254",
                ],
            ),
        ] {
            for address in addresses {
                assert_eq!(Reach::of(address.parse().expect("an address")), reach, "{address}");
            }
        }
    }
}
