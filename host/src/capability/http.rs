//! HTTP requests to the origins of a grant. A plugin builds a request with `wasi:http`; the host decides whether it may go
//! out, to which address, and sends it.
//!
//! The host follows no redirection: a 3xx is the answer, and where it leads to is another request with its own question of
//! whether it is granted. Connections are kept and shared by the instances of a store; nothing but granted origins is at the
//! other end of one.

use std::error::Error as _;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, vec};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Body;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::network::{Hosts, Refusal};
use crate::config::{HostName, HttpGrant, Origin};

/// The largest body of an answer: what may cross into an instance in one call.
const RESPONSE_BYTES_MAX: usize = 256 << 20;
/// The largest head of an answer.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Connections that are kept to one origin, and for how long without use.
const IDLE_CONNECTIONS_MAX: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The origins of one grant, and the way there. Clones share their connections.
#[derive(Clone)]
pub struct Origins {
    origins: Arc<[Origin]>,
    hosts: Hosts,
    client: Client<HttpsConnector<HttpConnector<Resolver>>, WasiBody>,
    timeout: Duration,
}

impl Origins {
    /// `timeout` is for an answer to begin, and for each wait after that in which nothing is heard. A plugin may ask for
    /// less.
    pub fn new(grant: &HttpGrant, timeout: Duration) -> io::Result<Origins> {
        let hosts = Hosts::new(grant.origins.iter().map(|origin| origin.endpoint.clone()).collect(), grant.private);
        let mut connector = HttpConnector::new_with_resolver(Resolver(hosts.clone()));
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        // The system's authorities take some time to read, and are of no use without encryption.
        let tls = match grant.origins.iter().any(|origin| origin.is_encrypted) {
            true => tls.with_native_roots()?,
            false => tls.with_root_certificates(RootCertStore::empty()),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .build(connector);
        Ok(Origins { origins: grant.origins.clone().into(), hosts, client, timeout })
    }

    /// The hosts of its origins.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    fn allow(&self, uri: &Uri) -> bool {
        let is_encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return false,
        };
        // A name before an `@` is no part of where it goes, and is only there to mislead.
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let Some(host) = authority.and_then(|authority| HostName::parse(authority.host())) else { return false };
        let port = uri.port_u16().unwrap_or(Origin::default_port(is_encrypted));
        self.origins.iter().any(|origin| {
            origin.is_encrypted == is_encrypted && origin.endpoint.host == host && origin.endpoint.port == port
        })
    }

    async fn send(self, request: Request<WasiBody>, options: RequestOptions) -> Result<Response<WasiBody>, Error> {
        if !self.allow(request.uri()) {
            return Err(Error::HttpRequestDenied);
        }
        // It asks the other side to connect to somewhere else.
        if request.method() == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        let patience = |wanted: Option<Duration>| wanted.unwrap_or(self.timeout).min(self.timeout);
        let first = (patience(options.connect_timeout) + patience(options.first_byte_timeout)).min(self.timeout);
        let response = tokio::time::timeout(first, self.client.request(request)).await;
        let response = response.map_err(|_| Error::HttpResponseTimeout)?.map_err(|error| error_of(&error))?;
        let between = patience(options.between_bytes_timeout);
        Ok(response.map(|body| bounded(body, RESPONSE_BYTES_MAX, between)))
    }
}

/// The body, which ends with an error where it grows too large or nothing comes for too long.
fn bounded<B>(body: B, bytes_max: usize, timeout: Duration) -> WasiBody
where
    B: Body<Data = Bytes, Error: Into<Error>> + Send + Unpin + 'static,
{
    let frames = stream::unfold(Some((body, bytes_max)), move |state| async move {
        let (mut body, left) = state?;
        let frame = match tokio::time::timeout(timeout, body.frame()).await {
            Ok(None) => return None,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Some((Err(error.into()), None)),
            Err(_) => return Some((Err(Error::HttpResponseTimeout), None)),
        };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(left) => Some((Ok(frame), Some((body, left)))),
            None => Some((Err(Error::HttpResponseBodySize(Some(bytes_max as u64))), None)),
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// What a plugin is told: a kind, and nothing of addresses.
fn error_of(error: &ClientError) -> Error {
    let mut cause = error.source();
    while let Some(this) = cause {
        match this.downcast_ref::<Refusal>() {
            Some(Refusal::NotGranted | Refusal::Prohibited(_)) => return Error::DestinationIpProhibited,
            Some(Refusal::Unresolved(_)) => return Error::DnsError { rcode: None, info_code: None },
            None => {}
        }
        match this.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(_)) => return Error::TlsCertificateError,
            Some(_) => return Error::TlsProtocolError,
            None => {}
        }
        if let Some(error) = this.downcast_ref::<hyper::Error>() {
            if error.is_parse_too_large() {
                return Error::HttpResponseHeaderSectionSize(Some(HEAD_BYTES_MAX as u32));
            }
            if error.is_incomplete_message() {
                return Error::HttpResponseIncomplete;
            }
        }
        let io = this.downcast_ref::<io::Error>();
        match io.map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => return Error::ConnectionRefused,
            Some(io::ErrorKind::TimedOut) => return Error::ConnectionTimeout,
            Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                return Error::DestinationUnavailable;
            }
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => return Error::ConnectionTerminated,
            _ => {}
        }
        // What is wrapped in one of the system's errors is not its source.
        cause = match io.and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &dyn std::error::Error),
            None => this.source(),
        };
    }
    if error.is_connect() { Error::DestinationUnavailable } else { Error::HttpProtocolError }
}

/// Names become addresses as the grant has it. An origin that is an address gets here never.
#[derive(Clone)]
struct Resolver(Hosts);

impl tower_service::Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Refusal>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let hosts = self.0.clone();
        Box::pin(async move {
            let host = HostName::parse(name.as_str()).ok_or(Refusal::NotGranted)?;
            let found: Vec<SocketAddr> =
                hosts.resolve(&host).await?.into_iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(found.into_iter())
        })
    }
}

/// What an instance sends its requests with: nothing, where nothing was granted.
pub(crate) struct Outgoing(pub(crate) Option<Origins>);

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let origins = self.0.clone();
        Box::new(async move {
            let origins = origins.ok_or(Error::HttpRequestDenied)?;
            let response = origins.send(request, options.unwrap_or_default()).await?;
            // The client drives the connection.
            let done: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(async { Ok(()) });
            Ok((response, done))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(allow: &[&str]) -> Origins {
        let allow: Vec<String> = allow.iter().map(|origin| format!("\"{origin}\"")).collect();
        let text = format!(
            r#"{{"storage": {{"strategy": "kv", "grants": {{"http": {{"allow": [{}]}}}}}}}}"#,
            allow.join(", ")
        );
        let config = crate::Config::from_text(&text, std::path::Path::new(".")).expect("a configuration");
        let grant = config.store(None).expect("a store").grants.http.expect("a grant");
        Origins::new(&grant, Duration::from_secs(1)).expect("a client")
    }

    #[test]
    fn a_request_goes_to_a_granted_origin_and_to_no_other() {
        let origins = origins(&["http://api.example.org", "http://127.0.0.1:8080", "http://[::1]:8080"]);
        for granted in [
            "http://api.example.org/",
            "http://API.example.org:80/a?b",
            "http://127.0.0.1:8080/",
            "http://[::1]:8080/",
            "http://[0:0::1]:8080/",
        ] {
            assert!(origins.allow(&granted.parse().expect("a URI")), "{granted}");
        }
        for denied in [
            "https://api.example.org/",
            "http://api.example.org:8080/",
            "http://sub.api.example.org/",
            "http://example.org/",
            "http://api.example.org@evil.example.org/",
            "http://evil.example.org@api.example.org/",
            "http://127.0.0.1/",
            "http://127.0.0.1:8081/",
            "http://localhost:8080/",
            "http://127.1:8080/",
            "http://2130706433:8080/",
            "/",
        ] {
            assert!(!origins.allow(&denied.parse().expect("a URI")), "{denied}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_or_does_not_come_ends_with_an_error() {
        let timeout = Duration::from_millis(50);
        let ten = || http_body_util::Full::new(Bytes::from_static(b"0123456789"));
        let whole = bounded(ten(), 10, timeout).collect().await.expect("a body that fits");
        assert_eq!(whole.to_bytes(), "0123456789");
        let error = bounded(ten(), 9, timeout).collect().await.expect_err("a body that is too large");
        assert!(matches!(error, Error::HttpResponseBodySize(Some(9))), "{error:?}");
        let never = StreamBody::new(stream::pending::<Result<hyper::body::Frame<Bytes>, Error>>());
        let error = bounded(never, 10, timeout).collect().await.expect_err("a body that does not come");
        assert!(matches!(error, Error::HttpResponseTimeout), "{error:?}");
    }
}
