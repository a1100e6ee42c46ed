//! Which addresses a store may reach: those of the hosts that its grant names, as the host itself resolves them.
//!
//! A plugin never decides what a name means. It asks, the host resolves, and only an address that came of that may be
//! connected to. So a name server that answers the plugin's host otherwise a moment later (DNS rebinding) gains nothing:
//! an answer that leads to this machine, into a private network or to a cloud's metadata is not used, unless the grant
//! says that names may lead there.

use std::collections::HashSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network, Pollable, subscribe};
use wasmtime_wasi::sockets::SocketAddrUse;

use crate::config::network::Reach;
use crate::config::{Endpoint, HostName};
use crate::plugin::instance::State;

/// What one lookup may take: a name server that does not answer is not waited for longer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses that are remembered of one store: a name that leads to ever new ones is forgotten, and asked for again.
const ADDRESSES_MAX: usize = 1000;
/// What leads to this machine, everywhere and without a name server (RFC 6761).
const LOCALHOST: &str = "localhost";

pub(super) type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// The hosts of one grant. Clones share what was resolved.
#[derive(Clone)]
pub struct Hosts(Arc<Inner>);

struct Inner {
    endpoints: Vec<Endpoint>,
    private: bool,
    look_up: fn(String) -> Lookup,
    /// Where granted names led.
    known: Mutex<HashSet<SocketAddr>>,
}

/// Why a host has no address for a plugin.
#[derive(Debug)]
pub enum Refusal {
    /// The grant does not name it.
    NotGranted,
    /// It leads to this address and to no other, and names may not lead there.
    Prohibited(IpAddr),
    /// Nobody knows it, or nobody can be asked.
    Unresolved(io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotGranted => f.write_str("the host was not granted"),
            Refusal::Prohibited(_) => f.write_str("the host leads where names may not lead"),
            Refusal::Unresolved(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

impl Hosts {
    /// Those of a grant, by the resolver of the system.
    pub fn new(endpoints: Vec<Endpoint>, private: bool) -> Hosts {
        Hosts::with_lookup(endpoints, private, |name| {
            Box::pin(async move {
                let found = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name, 0))).await;
                Ok(found.map_err(|_| io::ErrorKind::TimedOut)??.map(|address| address.ip()).collect())
            })
        })
    }

    pub(super) fn with_lookup(endpoints: Vec<Endpoint>, private: bool, look_up: fn(String) -> Lookup) -> Hosts {
        Hosts(Arc::new(Inner { endpoints, private, look_up, known: Mutex::default() }))
    }

    /// The names among them, each once.
    pub fn names(&self) -> Vec<HostName> {
        let mut names: Vec<HostName> = Vec::new();
        for endpoint in &self.0.endpoints {
            if matches!(endpoint.host, HostName::Name(_)) && !names.contains(&endpoint.host) {
                names.push(endpoint.host.clone());
            }
        }
        names
    }

    /// The addresses of a host that a plugin may know, which are then those that it may connect to.
    pub async fn resolve(&self, host: &HostName) -> Result<Vec<IpAddr>, Refusal> {
        let ports: Vec<u16> = self.0.endpoints.iter().filter(|it| it.host == *host).map(|it| it.port).collect();
        if ports.is_empty() {
            return Err(Refusal::NotGranted);
        }
        let found = match host {
            // Whoever writes an address into a grant means it.
            HostName::Address(address) => return Ok(vec![*address]),
            HostName::Name(name) if name == LOCALHOST => {
                vec![IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)]
            }
            HostName::Name(name) => {
                let found = (self.0.look_up)(name.clone()).await.map_err(Refusal::Unresolved)?;
                let found: Vec<IpAddr> = found.iter().map(IpAddr::to_canonical).collect();
                let allowed: Vec<IpAddr> = found.iter().copied().filter(|it| self.may_lead_to(*it)).collect();
                match (allowed.is_empty(), found.first()) {
                    (true, Some(prohibited)) => return Err(Refusal::Prohibited(*prohibited)),
                    (true, None) => return Err(Refusal::Unresolved(io::ErrorKind::NotFound.into())),
                    (false, _) => allowed,
                }
            }
        };
        let mut known = self.0.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if known.len() > ADDRESSES_MAX {
            known.clear();
        }
        known.extend(found.iter().flat_map(|address| ports.iter().map(|port| SocketAddr::new(*address, *port))));
        Ok(found)
    }

    fn may_lead_to(&self, address: IpAddr) -> bool {
        match Reach::of(address) {
            Reach::Public => true,
            Reach::Loopback | Reach::Private => self.0.private,
            Reach::Special => false,
        }
    }

    /// Whether a connection to `address` is one to a granted host.
    pub fn allow_connection(&self, address: SocketAddr) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let is_named = |it: &Endpoint| it.host == HostName::Address(address.ip()) && it.port == address.port();
        let known = || self.0.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).contains(&address);
        self.0.endpoints.iter().any(is_named) || known()
    }

    /// Whether a socket may be used so. There is nothing to listen to, and no port of one's own to be had: an outgoing
    /// connection is bound to whichever is free, which the system asks about as well.
    pub fn allow_use(&self, address: SocketAddr, used: SocketAddrUse) -> bool {
        match used {
            SocketAddrUse::TcpConnect => self.allow_connection(address),
            SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
            SocketAddrUse::TcpListen
            | SocketAddrUse::TcpAccept
            | SocketAddrUse::UdpBind
            | SocketAddrUse::UdpSend
            | SocketAddrUse::UdpReceive => false,
        }
    }
}

/// What a lookup found, to be taken one by one.
pub struct Addresses(std::vec::IntoIter<IpAddr>);

#[wasmtime_wasi::async_trait]
impl Pollable for Addresses {
    /// The answer was there before the stream was.
    async fn ready(&mut self) {}
}

/// Links `wasi:sockets/ip-name-lookup` so that it answers for granted names, in place of the one of wasmtime-wasi, which
/// asks the system for any.
pub(crate) fn add_name_lookup(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut instance = linker.instance("wasi:sockets/ip-name-lookup@0.2.12")?;
    let stream = ResourceType::host::<Addresses>();
    instance.resource("resolve-address-stream", stream, |mut store, handle| {
        store.data_mut().table.delete(Resource::<Addresses>::new_own(handle))?;
        Ok(())
    })?;
    instance.func_wrap_async("resolve-addresses", |mut store, (network, name): (Resource<Network>, String)| {
        Box::new(async move {
            store.data_mut().table.get(&network)?;
            let hosts = store.data().tcp.clone();
            let found = match (hosts, HostName::parse(&name)) {
                (Some(hosts), Some(host)) => hosts.resolve(&host).await,
                _ => Err(Refusal::NotGranted),
            };
            let answer = match found {
                Ok(addresses) => Ok(store.data_mut().table.push(Addresses(addresses.into_iter()))?),
                Err(Refusal::NotGranted | Refusal::Prohibited(_)) => Err(ErrorCode::AccessDenied),
                Err(Refusal::Unresolved(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    Err(ErrorCode::TemporaryResolverFailure)
                }
                Err(Refusal::Unresolved(_)) => Err(ErrorCode::NameUnresolvable),
            };
            Ok((answer,))
        })
    })?;
    let next = "[method]resolve-address-stream.resolve-next-address";
    instance.func_wrap(next, |mut store, (stream,): (Resource<Addresses>,)| {
        let next = store.data_mut().table.get_mut(&stream)?.0.next();
        Ok((Ok::<Option<IpAddress>, ErrorCode>(next.map(IpAddress::from)),))
    })?;
    instance.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store, (stream,): (Resource<Addresses>,)| -> wasmtime::Result<(Resource<DynPollable>,)> {
            Ok((subscribe(&mut store.data_mut().table, stream)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn hosts(endpoints: &[(&str, u16)], private: bool, look_up: fn(String) -> Lookup) -> Hosts {
        let endpoint =
            |(host, port): &(&str, u16)| Endpoint { host: HostName::parse(host).expect("a host"), port: *port };
        Hosts::with_lookup(endpoints.iter().map(endpoint).collect(), private, look_up)
    }

    fn leads_to(addresses: &'static [&'static str]) -> io::Result<Vec<IpAddr>> {
        Ok(addresses.iter().map(|address| address.parse().expect("an address")).collect())
    }

    fn name(text: &str) -> HostName {
        HostName::parse(text).expect("a name")
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn an_address_is_reached_when_the_host_resolved_a_granted_name_to_it_and_at_its_port_alone() {
        let hosts = hosts(&[("cache.example.org", 6379), ("10.0.0.5", 9000)], false, |name| {
            assert_eq!(name, "cache.example.org", "no other name is asked for");
            Box::pin(async { leads_to(&["8.8.8.8", "2606:4700::1111"]) })
        });
        assert!(!hosts.allow_connection(address("8.8.8.8:6379")), "nobody has resolved it yet");
        assert_eq!(hosts.resolve(&name("Cache.Example.org.")).await.expect("addresses").len(), 2);
        assert!(hosts.allow_connection(address("8.8.8.8:6379")));
        assert!(hosts.allow_connection(address("[2606:4700::1111]:6379")));
        assert!(hosts.allow_connection(address("10.0.0.5:9000")), "an address that is named needs no name");
        assert!(hosts.allow_connection(address("[::ffff:10.0.0.5]:9000")), "however it is spelt");
        for other in ["8.8.8.8:6380", "8.8.4.4:6379", "10.0.0.5:6379", "8.8.8.8:9000", "127.0.0.1:6379"] {
            assert!(!hosts.allow_connection(address(other)), "{other}");
        }
        for other in ["example.org", "sub.cache.example.org", "10.0.0.6", "localhost"] {
            assert!(matches!(hosts.resolve(&name(other)).await, Err(Refusal::NotGranted)), "{other}");
        }
    }

    #[tokio::test]
    async fn a_name_that_is_rebound_to_a_private_address_leads_nowhere() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        fn rebinding(_: String) -> Lookup {
            Box::pin(async {
                leads_to(match ASKED.fetch_add(1, Ordering::SeqCst) {
                    0 => &["8.8.8.8"],
                    1 => &["127.0.0.1", "10.0.0.1"],
                    2 => &["169.254.169.254"],
                    _ => &["::ffff:192.168.0.1", "1.1.1.1"],
                })
            })
        }
        let hosts = hosts(&[("evil.example.org", 80)], false, rebinding);
        let evil = name("evil.example.org");
        assert_eq!(hosts.resolve(&evil).await.expect("a public address"), leads_to(&["8.8.8.8"]).expect("an address"));
        for _ in 0..2 {
            assert!(matches!(hosts.resolve(&evil).await, Err(Refusal::Prohibited(_))));
        }
        // Of several, those that it may lead to are left.
        assert_eq!(hosts.resolve(&evil).await.expect("a public address"), leads_to(&["1.1.1.1"]).expect("an address"));
        for denied in ["127.0.0.1:80", "10.0.0.1:80", "169.254.169.254:80", "192.168.0.1:80"] {
            assert!(!hosts.allow_connection(address(denied)), "{denied}");
        }
        assert!(hosts.allow_connection(address("8.8.8.8:80")) && hosts.allow_connection(address("1.1.1.1:80")));
    }

    #[tokio::test]
    async fn names_lead_to_private_addresses_where_the_grant_says_so_and_to_metadata_never() {
        let to = |look_up| hosts(&[("inside.example.org", 80)], true, look_up);
        let inside = name("inside.example.org");
        let private = to(|_| Box::pin(async { leads_to(&["10.0.0.1", "127.0.0.1", "fd12::1"]) }));
        assert_eq!(private.resolve(&inside).await.expect("addresses").len(), 3);
        let metadata = to(|_| Box::pin(async { leads_to(&["169.254.169.254", "fd00:ec2::254"]) }));
        assert!(matches!(metadata.resolve(&inside).await, Err(Refusal::Prohibited(_))));
        let none = to(|_| Box::pin(async { leads_to(&[]) }));
        assert!(matches!(none.resolve(&inside).await, Err(Refusal::Unresolved(_))));
    }

    #[tokio::test]
    async fn localhost_is_this_machine_without_a_name_server() {
        let hosts = hosts(&[("localhost", 80)], false, |name| panic!("{name} was looked up"));
        assert_eq!(hosts.resolve(&name("LOCALHOST")).await.expect("addresses").len(), 2);
        assert!(hosts.allow_connection(address("127.0.0.1:80")) && hosts.allow_connection(address("[::1]:80")));
        assert!(!hosts.allow_connection(address("127.0.0.2:80")) && !hosts.allow_connection(address("127.0.0.1:81")));
    }

    #[test]
    fn a_socket_connects_and_does_nothing_else() {
        let hosts = hosts(&[("10.0.0.5", 9000)], true, |_| Box::pin(async { leads_to(&[]) }));
        let granted = address("10.0.0.5:9000");
        assert!(hosts.allow_use(granted, SocketAddrUse::TcpConnect));
        assert!(hosts.allow_use(address("0.0.0.0:0"), SocketAddrUse::TcpBind), "which every connection does");
        assert!(!hosts.allow_use(address("0.0.0.0:9000"), SocketAddrUse::TcpBind));
        assert!(!hosts.allow_use(address("127.0.0.1:0"), SocketAddrUse::TcpBind));
        for used in [
            SocketAddrUse::TcpListen,
            SocketAddrUse::TcpAccept,
            SocketAddrUse::UdpBind,
            SocketAddrUse::UdpSend,
            SocketAddrUse::UdpReceive,
        ] {
            assert!(!hosts.allow_use(granted, used), "{used:?}");
        }
    }
}
