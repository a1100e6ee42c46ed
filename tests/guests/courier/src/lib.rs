//! A strategy that goes to the network: each id that it is asked for is an errand, such as `tcp 127.0.0.1:6379` or
//! `http GET https://example.org/`, and the entity that it answers tells what came of it. So the errands stand in the
//! tests, beside what must become of them.
//!
//! It imports `wasi:http` and `wasi:sockets`, and no capability of larder's own.

use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use larder_guest::Strategy;
use larder_model::{
    Batch, Collection, Description, Entity, Error, ErrorKind, Existing, Features, Isolation, Loaded, Opened, Outcome,
    Page, Query, Result, Violation, Write, filter::Filter,
};
use serde_json::{Value, json};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, IncomingBody, Method, OutgoingRequest, RequestOptions, Scheme};
use wasip2::io::streams::StreamError;
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::network::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;

/// What it says to a server.
const MARK: &[u8] = b"the courier was here\n";
/// Bytes that are read of an answer at once.
const READ_BYTES_MAX: u64 = 1 << 16;

#[cfg(target_family = "wasm")]
larder_guest::export_strategy!(crate::Courier);

/// An open store.
pub struct Courier {
    collections: Vec<Collection>,
}

/// What came of an errand, or what was in the way.
type Told = std::result::Result<String, String>;

fn run(errand: &str) -> Told {
    let words: Vec<&str> = errand.split(' ').collect();
    let failed = |error: std::io::Error| format!("{:?}", error.kind());
    match words.as_slice() {
        ["tcp", address] => {
            let mut stream = TcpStream::connect(address).map_err(failed)?;
            stream.write_all(MARK).map_err(failed)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(failed)?;
            Ok(answer)
        }
        ["resolve", name] => {
            let found = (*name, 0).to_socket_addrs().map_err(failed)?;
            Ok(found.map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" "))
        }
        ["udp", address] => {
            let socket = UdpSocket::bind("0.0.0.0:0").map_err(failed)?;
            socket.send_to(MARK, address).map(|sent| sent.to_string()).map_err(failed)
        }
        ["listen", address] => TcpListener::bind(address).map(|_| "listening".to_owned()).map_err(failed),
        // Without listening, which the standard library cannot.
        ["bind", port] => {
            let socket = create_tcp_socket(IpAddressFamily::Ipv4).map_err(|error| error.name().to_owned())?;
            let port = port.parse().map_err(|_| "no port")?;
            let local = IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (127, 0, 0, 1) });
            let bound = socket.start_bind(&instance_network(), local).and_then(|()| socket.finish_bind());
            bound.map(|()| "bound".to_owned()).map_err(|error| error.name().to_owned())
        }
        ["http", method, url] => request(method, url, None),
        ["http-impatient", milliseconds, url] => {
            let patience = milliseconds.parse().map_err(|_| "no number")?;
            request("GET", url, Some(Duration::from_millis(patience)))
        }
        _ => Err(format!("the courier does not know how to {errand}")),
    }
}

/// The status, where it leads to, and the body.
fn request(method: &str, url: &str, patience: Option<Duration>) -> Told {
    let failed = |error: &dyn std::fmt::Debug| format!("{error:?}");
    let (scheme, rest) = url.split_once("://").ok_or("no scheme")?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let request = OutgoingRequest::new(Fields::new());
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    let method = match method {
        "GET" => Method::Get,
        "CONNECT" => Method::Connect,
        other => Method::Other(other.to_owned()),
    };
    let refused = |what: &str| format!("{what} is refused");
    request.set_method(&method).map_err(|()| refused("the method"))?;
    request.set_scheme(Some(&scheme)).map_err(|()| refused("the scheme"))?;
    request.set_authority(Some(authority)).map_err(|()| refused("the authority"))?;
    request.set_path_with_query(Some(path)).map_err(|()| refused("the path"))?;
    let options = patience.map(|patience| {
        let options = RequestOptions::new();
        let nanoseconds = u64::try_from(patience.as_nanos()).ok();
        let _ = options.set_first_byte_timeout(nanoseconds);
        let _ = options.set_connect_timeout(nanoseconds);
        options
    });
    let response = outgoing_handler::handle(request, options).map_err(|error| failed(&error))?;
    response.subscribe().block();
    let response =
        response.get().ok_or("no answer")?.map_err(|()| "answered twice")?.map_err(|error| failed(&error))?;
    let location = response.headers().get("location");
    let location = location.first().map(|value| format!(" to {}", String::from_utf8_lossy(value))).unwrap_or_default();
    let status = response.status();
    let body = response.consume().map_err(|()| "no body")?;
    let text = read(&body)?;
    Ok(format!("{status}{location}: {text}"))
}

/// A body that is long is told by its length.
fn read(body: &IncomingBody) -> Told {
    let stream = body.stream().map_err(|()| "no stream")?;
    let (mut kept, mut length) = (Vec::new(), 0);
    loop {
        match stream.blocking_read(READ_BYTES_MAX) {
            Ok(bytes) => {
                length += bytes.len();
                if kept.len() < 1000 {
                    kept.extend(bytes);
                }
            }
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
        }
    }
    Ok(if length > 1000 { format!("{length} bytes") } else { String::from_utf8_lossy(&kept).into_owned() })
}

fn silent<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "the courier only runs the errands that it is asked for by id"))
}

impl Strategy for Courier {
    type Transaction = ();

    fn describe() -> Description {
        Description {
            strategy: "courier".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: Features::default(),
            isolations: Vec::new(),
            max_atomic_writes: 0,
            max_entity_bytes: 1 << 20,
            config_schema: json!({ "type": "object", "additionalProperties": false }).to_string(),
        }
    }

    fn open(_: &str, collections: Vec<Collection>) -> Result<(Self, Opened)> {
        Ok((Courier { collections }, Opened::default()))
    }

    fn get(&mut self, collection: &str, ids: &[String]) -> Result<Vec<Option<Entity>>> {
        let found = self.collections.iter().find(|definition| definition.name == collection);
        let key = &found.ok_or_else(|| Error::invalid("there is no such collection"))?.key;
        let answer = |id: &String| {
            let (answer, value) = match run(id) {
                Ok(value) => ("ok", value),
                Err(error) => ("error", error),
            };
            let mut body = json!({ "answer": answer, "value": value, "version": 1 });
            body[key] = Value::from(id.as_str());
            Some(Entity { id: id.clone(), version: 1, body: body.to_string().into_bytes() })
        };
        Ok(ids.iter().map(answer).collect())
    }

    fn stored_collections(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn prepare(&mut self, _dry_run: bool, _extend: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn check(&mut self, _thorough: bool) -> Result<String> {
        Ok(r#"{"reachable": true}"#.to_owned())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    fn find(&mut self, _collection: &str, _query: &Query) -> Result<Page> {
        silent()
    }

    /// It keeps nothing.
    fn count(&mut self, _collection: &str, _filter: Option<&Filter>) -> Result<Option<u64>> {
        Ok(Some(0))
    }

    fn scan(&mut self, _collection: &str, _: u32, _: u32, _cursor: Option<&[u8]>, _: u32) -> Result<Batch> {
        Ok(Batch { entities: Vec::new(), next: None })
    }

    fn apply(&mut self, _writes: Vec<Write>, _atomic: bool, _now: &str) -> Result<Vec<Result<Outcome>>> {
        silent()
    }

    fn load(&mut self, _collection: &str, _entities: Vec<Entity>, _existing: Existing) -> Result<Loaded> {
        silent()
    }

    fn validate(&mut self, _collection: &str, _entities: Vec<Entity>) -> Result<Vec<Violation>> {
        silent()
    }

    fn begin(&mut self, _isolation: Option<Isolation>, _read_only: bool) -> Result<()> {
        silent()
    }

    fn transaction_get(&mut self, _: &mut (), _: &str, _: &[String], _: bool) -> Result<Vec<Option<Entity>>> {
        silent()
    }

    fn transaction_find(&mut self, _: &mut (), _: &str, _: &Query) -> Result<Page> {
        silent()
    }

    fn transaction_apply(&mut self, _: &mut (), _: Vec<Write>, _: &str) -> Result<Vec<Outcome>> {
        silent()
    }

    fn commit(&mut self, (): ()) -> Result<()> {
        silent()
    }

    fn rollback(&mut self, (): ()) -> Result<()> {
        silent()
    }
}
