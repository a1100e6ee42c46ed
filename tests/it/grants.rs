//! What a strategy from outside is lent over the network and what it is not, what is told of a component that nobody has
//! run, and which components are loaded at all.
//!
//! The errands are ids: `tests/guests/courier` runs them and answers what came of each.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::config::Config;
use larder::repository::Repository;
use serde_json::{Value, json};

use crate::support::{Folder, Run, guests, object, plugins};

/// A folder with a courier that is granted this.
fn folder(grants: &Value) -> Folder {
    Folder::new(&format!(
        r#"{{"storage": {{"strategy": "courier", "grants": {grants}}}, "plugins": {{"call_timeout": 5}}}}"#
    ))
}

async fn courier(folder: &Folder) -> Repository {
    folder.host_with(&guests()).open(None).await.expect("a store that opens")
}

/// What came of an errand: `ok` or `error`, and what it saw or was told.
async fn run(courier: &Repository, errand: &str) -> (String, String) {
    let found =
        courier.get("templates", &[errand.to_owned()]).await.unwrap_or_else(|error| panic!("{errand}: {error:?}"));
    let members = object(found[0].as_ref().expect("an answer").body.as_slice());
    let text = |name: &str| members[name].as_str().expect("a text").to_owned();
    (text("answer"), text("value"))
}

async fn succeeds(courier: &Repository, errand: &str) -> String {
    let (answer, value) = run(courier, errand).await;
    assert_eq!(answer, "ok", "{errand}: {value}");
    value
}

async fn fails(courier: &Repository, errand: &str, words: &[&str]) {
    let (answer, value) = run(courier, errand).await;
    assert_eq!(answer, "error", "{errand}: {value}");
    assert!(words.iter().any(|word| value.contains(word)), "{errand}: {value}, and none of {words:?}");
}

/// A server on this machine for the time of a test. Each connection is given to `serve`.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counter, serve) = (connections.clone(), Arc::new(serve));
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Server { port, connections }
    }

    /// One that says what it was told.
    fn echo() -> Server {
        Server::new(|mut stream| {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let _ = write!(stream, "heard: {}", line.trim());
        })
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An HTTP server, and the paths that it was asked for.
fn http_server() -> (Server, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let server = Server::new(move |stream| {
        let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                match reader.read_line(&mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if line == "\r\n" => break,
                    Ok(_) => head.push(line),
                }
            }
            let path = head[0].split(' ').nth(1).expect("a request line").to_owned();
            log.lock().expect("a list").push(path.clone());
            let response = match path.as_str() {
                "/hang" => return std::thread::sleep(Duration::from_secs(30)),
                "/moved" => "HTTP/1.1 302 Found\r\nlocation: /secret\r\ncontent-length: 5\r\n\r\nmoved".to_owned(),
                "/head" => format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(1 << 20)),
                "/large" => format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{}", "x".repeat(1_000_000)),
                "/cut" => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_owned(),
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_owned(),
            };
            if (&stream).write_all(response.as_bytes()).is_err() || path == "/cut" {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    });
    (server, asked)
}

const DENIED: &[&str] = &["PermissionDenied", "access-denied"];
/// The standard library has no word for a name that may not be asked for.
const NO_NAME: &[&str] = &["PermissionDenied", "Uncategorized", "Other"];

#[tokio::test]
async fn a_connection_goes_to_a_granted_address_and_port_and_nothing_else_does() {
    let (granted, other) = (Server::echo(), Server::echo());
    let folder = folder(&json!({
        "tcp": {"allow": [format!("127.0.0.1:{}", granted.port)]},
        "http": {"allow": ["http://127.0.0.1:1"]},
    }));
    let courier = courier(&folder).await;
    let errand = format!("tcp 127.0.0.1:{}", granted.port);
    assert_eq!(succeeds(&courier, &errand).await, "heard: the courier was here");

    fails(&courier, &format!("tcp 127.0.0.1:{}", other.port), DENIED).await;
    fails(&courier, &format!("tcp 127.0.0.2:{}", granted.port), DENIED).await;
    fails(&courier, &format!("tcp [::1]:{}", granted.port), DENIED).await;
    for name in ["localhost", "example.org", "127.1"] {
        fails(&courier, &format!("tcp {name}:{}", granted.port), NO_NAME).await;
        fails(&courier, &format!("resolve {name}"), NO_NAME).await;
    }
    assert_eq!((granted.connections(), other.connections()), (1, 0));

    for address in ["127.0.0.1:0", "0.0.0.0:0", &format!("127.0.0.1:{}", other.port)] {
        fails(&courier, &format!("listen {address}"), DENIED).await;
    }
    fails(&courier, "bind 0", DENIED).await;
    let receiver = UdpSocket::bind("127.0.0.1:0").expect("a port");
    receiver.set_nonblocking(true).expect("a socket");
    let port = receiver.local_addr().expect("an address").port();
    fails(&courier, &format!("udp 127.0.0.1:{port}"), &["PermissionDenied", "Unsupported"]).await;
    assert!(receiver.recv(&mut [0; 100]).is_err(), "something was sent");
}

#[tokio::test]
async fn a_granted_name_is_resolved_by_the_host_and_its_addresses_are_reached() {
    let server = Server::echo();
    let folder = folder(&json!({
        "tcp": {"allow": [format!("LocalHost:{}", server.port)]},
        "http": {"allow": ["http://127.0.0.1:1"]},
    }));
    let courier = courier(&folder).await;
    assert!(succeeds(&courier, "resolve localhost").await.contains("127.0.0.1"));
    let errand = format!("tcp localhost:{}", server.port);
    assert_eq!(succeeds(&courier, &errand).await, "heard: the courier was here");
    let errand = format!("tcp 127.0.0.1:{}", server.port);
    assert_eq!(succeeds(&courier, &errand).await, "heard: the courier was here");
    fails(&courier, &format!("tcp 127.0.0.2:{}", server.port), DENIED).await;
    fails(&courier, "resolve localhost.example.org", NO_NAME).await;
}

#[tokio::test]
async fn a_request_goes_to_a_granted_origin_and_no_redirection_is_followed() {
    let ((granted, asked), (other, _)) = (http_server(), http_server());
    let origin = format!("http://127.0.0.1:{}", granted.port);
    let folder = folder(&json!({"http": {"allow": [origin]}}));
    let courier = courier(&folder).await;
    assert_eq!(succeeds(&courier, &format!("http GET {origin}/a?b")).await, "200: hello");
    assert_eq!(succeeds(&courier, &format!("http PURGE {origin}/c")).await, "200: hello");
    assert_eq!(succeeds(&courier, &format!("http GET {origin}/moved")).await, "302 to /secret: moved");
    assert_eq!(succeeds(&courier, &format!("http GET {origin}/large")).await, "200: 1000000 bytes");
    assert_eq!(*asked.lock().expect("a list"), ["/a?b", "/c", "/moved", "/large"]);
    assert_eq!(granted.connections(), 1, "a connection is used again");

    for elsewhere in [
        format!("http://127.0.0.1:{}/", other.port),
        format!("https://127.0.0.1:{}/", granted.port),
        format!("http://localhost:{}/", granted.port),
        format!("http://127.0.0.2:{}/", granted.port),
        format!("http://{}:{}/", "127.1", granted.port),
        "http://127.0.0.1/".to_owned(),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        format!("http://127.0.0.1:{}@127.0.0.1:{}/", granted.port, other.port),
        format!("http://x@127.0.0.1:{}/", granted.port),
    ] {
        fails(&courier, &format!("http GET {elsewhere}"), &["HttpRequestDenied"]).await;
    }
    fails(&courier, &format!("http CONNECT {origin}/"), &["HttpRequestMethodInvalid"]).await;
    // And sockets are not lent by the way.
    fails(&courier, &format!("tcp 127.0.0.1:{}", granted.port), DENIED).await;
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn a_server_that_does_not_answer_as_it_should_is_an_error_that_the_plugin_is_told() {
    let (server, _) = http_server();
    let origin = format!("http://127.0.0.1:{}", server.port);
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port that is free").port();
    let nobody = format!("http://127.0.0.1:{gone}");
    let folder = folder(&json!({"http": {"allow": [origin, nobody]}}));
    let courier = courier(&folder).await;
    fails(&courier, &format!("http-impatient 200 {origin}/hang"), &["HttpResponseTimeout"]).await;
    fails(&courier, &format!("http GET {origin}/head"), &["HttpResponseHeaderSectionSize"]).await;
    fails(&courier, &format!("http GET {origin}/cut"), &["error reading a body"]).await;
    fails(&courier, &format!("http GET {nobody}/"), &["ConnectionRefused"]).await;
    assert_eq!(succeeds(&courier, &format!("http GET {origin}/")).await, "200: hello");
}

/// `openssl s_server` with a certificate of its own for `localhost`, as long as this lives.
struct TlsServer {
    child: Child,
    port: u16,
}

impl TlsServer {
    fn new(folder: &Path) -> TlsServer {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args([
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                "server.key",
                "-out",
                "server.crt",
            ])
            .current_dir(folder)
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert", "server.crt", "-key", "server.key"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ")?.rsplit_once(':')?.1.trim().parse().ok());
        // What it says of each connection has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        TlsServer { child, port: port.expect("the port that it listens at") }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_encrypted_origin_is_believed_when_an_authority_of_the_system_signed_its_certificate() {
    let place = tempfile::tempdir().expect("a folder");
    let server = TlsServer::new(place.path());
    let stranger = tempfile::tempdir().expect("a folder");
    let _stranger = TlsServer::new(stranger.path());
    let origin = format!("https://localhost:{}", server.port);
    let folder = folder(&json!({"http": {"allow": [origin]}}));
    let errand = format!("http GET {origin}/");
    let get = |authorities: &Path| {
        let mut command = folder.command(&["--format", "json", "get", "templates", &errand]);
        command.env("LARDER_PLUGINS", guests()).env("SSL_CERT_FILE", authorities).env_remove("SSL_CERT_DIR");
        object(crate::support::run_with(command, "").exits(0).stdout.trim())
    };
    let found = get(&place.path().join("server.crt"));
    assert!(found["value"].as_str().is_some_and(|it| it.starts_with("200: ")), "{found:?}");
    let found = get(&stranger.path().join("server.crt"));
    assert_eq!(found["value"], "ErrorCode::TlsCertificateError", "{found:?}");
}

/// Runs the program with the guests.
fn larder(folder: &Folder, arguments: &[&str]) -> Run {
    let plugins = guests();
    let plugins = plugins.to_str().expect("UTF-8");
    folder.larder(&[&["--plugins", plugins, "--format", "json"], arguments].concat())
}

/// The one error of a run that must end with this code.
#[track_caller]
fn error(run: Run, code: i32, kind: &str) -> Value {
    let run = run.exits(code);
    let error: Value = serde_json::from_str(run.stderr.trim()).unwrap_or_else(|_| panic!("one error: {run:#?}"));
    assert_eq!(error["kind"], kind, "{run:#?}");
    error
}

#[track_caller]
fn says(error: &Value, member: &str, part: &str) {
    assert!(error[member].to_string().contains(Value::from(part).to_string().trim_matches('"')), "{part}: {error:#}");
}

#[test]
fn a_component_that_sends_requests_is_loaded_for_a_store_that_was_granted_origins() {
    let folder = folder(&json!({"tcp": {"allow": ["127.0.0.1:1"]}}));
    let refused = error(larder(&folder, &["get", "templates", "resolve localhost"]), 3, "plugin-refused");
    says(&refused, "message", "wants the capability `http`, which store `courier` was not granted");
    says(&refused, "hint", r#""grants": {"http": {"allow": ["https://HOST"]}} to `storage`"#);
}

#[test]
fn grants_that_cannot_be_meant_are_told_with_their_place() {
    for (grants, message) in [
        (json!({"tcp": {}}), "`storage.grants.tcp.allow` is missing"),
        (json!({"tcp": {"allow": []}}), "`storage.grants.tcp.allow` must not be empty"),
        (
            json!({"tcp": {"allow": ["a:1", "*.example.org:1"]}}),
            "`storage.grants.tcp.allow.1` is not a host with its port",
        ),
        (
            json!({"http": {"allow": ["https://user:secret@example.org"]}}),
            "`storage.grants.http.allow.0` is not an origin",
        ),
        (json!({"udp": {"allow": ["a:1"]}}), "`storage.grants.udp` is no known key"),
    ] {
        let folder = folder(&grants);
        let mistake = error(larder(&folder, &["config", "check"]), 2, "configuration");
        assert!(mistake.to_string().contains(message), "{message}: {mistake:#}");
        assert!(!mistake.to_string().contains("secret"), "{mistake:#}");
    }
}

#[test]
fn a_plugin_is_tested_with_what_its_store_is_lent() {
    let folder = folder(&json!({}));
    let courier = guests().join("courier.wasm");
    let courier = courier.to_str().expect("UTF-8");
    let cases = larder(&folder, &["plugins", "test", courier, "--list"]).exits(0).stdout;
    let case = object(cases.lines().next().expect("a case"))["case"].as_str().expect("a name").to_owned();
    let run = larder(
        &folder,
        &[
            "plugins",
            "test",
            courier,
            "--store-config",
            r#"{"grants": {"http": {"allow": ["http://127.0.0.1:1"]}}}"#,
            "--case",
            &case,
        ],
    );
    // It was opened and held against the contract, which it does not keep.
    assert!([0, 1].contains(&run.code), "{run:#?}");
    assert!(run.stdout.contains(&format!("\"case\":\"{case}\"")), "{run:#?}");
    let refused = larder(&folder, &["plugins", "test", courier, "--store-config", "{}", "--case", &case]);
    error(refused, 3, "plugin-refused");
}

// A component that is looked at.

/// Runs `plugins inspect` and gives what it printed.
fn inspected(folder: &Folder, file: &Path) -> Value {
    let run = larder(folder, &["plugins", "inspect", file.to_str().expect("UTF-8")]).exits(0);
    serde_json::from_str(run.stdout.trim()).expect("JSON")
}

#[test]
fn what_a_component_wants_is_told_with_a_store_that_grants_it() {
    let folder = folder(&json!({}));
    for (file, wants) in [
        (plugins().join("json.wasm"), &["files"][..]),
        (plugins().join("sql.wasm"), &["sql"]),
        (plugins().join("dynamodb.wasm"), &["dynamodb"]),
        (guests().join("shelf.wasm"), &["files"]),
        (guests().join("puppet.wasm"), &["files", "sql"]),
        (guests().join("courier.wasm"), &["http"]),
    ] {
        let found = inspected(&folder, &file);
        assert_eq!(found["wants"], json!(wants), "{found:#}");
        assert_eq!(
            (&found["contract"], &found["refused"], &found["threads"]),
            (&json!("0.1.0"), &Value::Null, &json!(false))
        );
        let number = |name: &str| found[name].as_u64().expect("a number");
        assert!(number("functions") > 100 && number("functions") < 10_000 && number("modules") >= 1, "{found:#}");
        assert!(
            number("size_bytes") > 10_000 && found["sha256"].as_str().is_some_and(|it| it.len() == 64),
            "{found:#}"
        );
        assert!(found["memories"][0]["initial_bytes"].as_u64().is_some_and(|it| it >= 65536), "{found:#}");
        let has = |list: &str, name: &str| found[list].as_array().is_some_and(|it| it.contains(&json!(name)));
        assert!(has("exports", "larder:storage/repository@0.1.0"), "{found:#}");
        for capability in wants.iter().filter(|it| **it != "http") {
            assert!(has("imports", &format!("larder:storage/{capability}@0.1.0")), "{found:#}");
        }
        assert!(found.get("version").is_none(), "only the component itself can say it: {found:#}");

        // The lines can be pasted: the store is valid, and was granted what the component wants.
        let name = found["plugin"].as_str().expect("a name");
        let config = json!({"storage": {"stores": {"pasted": found["store"]}}});
        let config = Config::from_value(config, folder.path()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let store = config.store(Some("pasted")).expect("a store");
        assert_eq!(store.strategy, name);
        for capability in wants {
            let is_granted = match *capability {
                "files" => store.grants.files.is_some(),
                "sql" => store.grants.sql.is_some(),
                "dynamodb" => store.grants.dynamodb.is_some(),
                _ => store.grants.http.is_some(),
            };
            assert!(is_granted, "{name} is not granted {capability}");
        }
    }
    // Who imports sockets, as standard libraries do, may be granted them.
    assert_eq!(inspected(&folder, &guests().join("puppet.wasm"))["may_use"], json!(["tcp"]));
    assert_eq!(inspected(&folder, &guests().join("shelf.wasm"))["may_use"], json!([]));

    // People read the same.
    let courier = guests().join("courier.wasm");
    let text = folder.larder(&["plugins", "inspect", courier.to_str().expect("UTF-8")]).exits(0).stdout;
    for part in ["wants:     http", "may use:   tcp", "contract:  0.1.0", r#""allow": ["#, r#""tcp": {"allow""#] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let lines =
        text.split("of the configuration:\n\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a store");
    let stores: Value = serde_json::from_str(&format!("{{{lines}}}")).expect("JSON");
    let config = Config::from_value(json!({"storage": {"stores": stores}}), folder.path()).expect("a configuration");
    assert!(config.store(Some("courier")).expect("a store").grants.http.is_some());
}

#[test]
fn a_component_is_looked_at_without_being_run() {
    let folder = folder(&json!({}));
    // It says that it is another strategy, as loading it would find out.
    std::fs::copy(guests().join("shelf.wasm"), folder.path().join("drawer.wasm")).expect("a copy");
    let drawer = folder.path().join("drawer.wasm");
    assert_eq!(inspected(&folder, &drawer)["plugin"], "drawer");
    let drawer = drawer.to_str().expect("UTF-8");
    let refused = error(larder(&folder, &["plugins", "inspect", drawer, "--describe"]), 3, "plugin-refused");
    says(&refused, "message", "says that it is the strategy `shelf`");

    // It would never come back from being instantiated.
    let endless = component("(core module $m (func $f (loop (br 0))) (start $f)) (core instance (instantiate $m))");
    folder.write("endless.wasm", endless);
    let found = inspected(&folder, &folder.path().join("endless.wasm"));
    assert_eq!((&found["functions"], &found["modules"]), (&json!(1), &json!(1)));

    // What is no file is not waited for.
    assert!(Command::new("mkfifo").arg(folder.path().join("fifo.wasm")).status().expect("mkfifo").success());
    for (other, message) in [("fifo.wasm", "is not a file"), (".", "is not a file"), ("absent.wasm", "cannot be read")]
    {
        let other = folder.path().join(other);
        let refused =
            error(larder(&folder, &["plugins", "inspect", other.to_str().expect("UTF-8")]), 3, "plugin-refused");
        says(&refused, "message", message);
    }

    let shelf = guests().join("shelf.wasm");
    let shelf = shelf.to_str().expect("UTF-8");
    let run = larder(&folder, &["plugins", "inspect", shelf, "--describe"]).exits(0);
    let found: Value = serde_json::from_str(run.stdout.trim()).expect("JSON");
    assert_eq!(found["features"], json!([]));
    assert!(found["config_schema"]["properties"]["extension"].is_object() && found["version"].is_string(), "{found:#}");
}

/// A component that claims the contract and has this in it.
fn component(content: &str) -> Vec<u8> {
    let text = format!(
        r#"(component {content} (instance $repository) (export "larder:storage/repository@0.1.0" (instance $repository)))"#
    );
    wat::parse_str(text).expect("a component")
}

#[test]
fn what_goes_too_far_is_refused_before_it_is_compiled() {
    let functions = |count: usize| format!("(core module {})", "(func)".repeat(count));
    let nested = format!("(component {}) {}", functions(60), functions(41));
    for (name, content, message, hint) in [
        ("many", functions(101), "has 101 functions, and may have 100", "plugins.functions_max"),
        ("nested", nested, "has 101 functions, and may have 100", "plugins.functions_max"),
        ("wide", "(core module (memory i64 1))".into(), "has a memory of 64-bit addresses", "wasm32-wasip2"),
        (
            "wide-import",
            r#"(core module (import "a" "b" (memory i64 1)))"#.into(),
            "has a memory of 64-bit",
            "wasm32-wasip2",
        ),
        ("shared", "(core module (memory 1 2 shared))".into(), "wants threads", "without threads"),
        (
            "huge",
            "(core module (memory 600)) (core module (memory 600))".into(),
            "begins with 75 MiB of memory, and an instance may have 64 MiB",
            "plugins.memory_mb_max",
        ),
    ] {
        let folder = Folder::new(&format!(
            r#"{{"storage": {{"strategy": "{name}"}}, "plugins": {{"functions_max": 100, "memory_mb_max": 64}}}}"#
        ));
        folder.write(&format!("plugins/{name}.wasm"), component(&content));
        let with_plugins =
            |arguments: &[&str]| folder.larder(&[&["--plugins", "plugins", "--format", "json"], arguments].concat());
        for arguments in [&["count", "templates"][..], &["plugins", "list"]] {
            let refused = error(with_plugins(arguments), 3, "plugin-refused");
            says(&refused, "message", message);
            says(&refused, "hint", hint);
        }
        // What it is made of is told all the same.
        let run = with_plugins(&["plugins", "inspect", &format!("plugins/{name}.wasm")]).exits(3);
        let found: Value = serde_json::from_str(run.stdout.trim()).expect("JSON");
        assert!(found["refused"].as_str().is_some_and(|it| it.contains(message)), "{found:#}");
        assert!(found["functions"].is_u64(), "{found:#}");
    }
    // As many as there may be are no reason.
    let folder = Folder::new(r#"{"plugins": {"functions_max": 101, "memory_mb_max": 64}}"#);
    folder.write("plugins/many.wasm", component(&functions(101)));
    folder.larder(&["plugins", "inspect", "plugins/many.wasm"]).exits(0);
}

// Plugins that are pinned.

/// A store of shelves with its plugin and another one.
fn pinnable() -> Folder {
    let folder = Folder::new(r#"{"storage": {"strategy": "shelf", "grants": {"files": {"directory": "@/shelves"}}}}"#);
    for guest in ["shelf.wasm", "puppet.wasm"] {
        folder.write(&format!("plugins/{guest}"), std::fs::read(guests().join(guest)).expect("a guest"));
    }
    folder
}

fn with_plugins(folder: &Folder, arguments: &[&str]) -> Run {
    folder.larder(&[&["--plugins", "plugins", "--format", "json"], arguments].concat())
}

fn printed(run: &Run) -> Vec<Value> {
    run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The component with a section that means nothing.
fn changed(component: &[u8]) -> Vec<u8> {
    [component, &[0, 5, 4], b"note"].concat()
}

#[test]
fn a_plugin_that_is_pinned_is_loaded_and_one_that_was_changed_or_added_is_not() {
    let folder = pinnable();
    let count = ["count", "templates"];
    assert!(printed(&with_plugins(&folder, &["plugins", "list"]).exits(0)).iter().all(|it| it["pinned"] == false));
    error(with_plugins(&folder, &["plugins", "pin", "--check"]), 2, "configuration");

    let pinned = printed(&with_plugins(&folder, &["plugins", "pin"]).exits(0));
    let names: Vec<_> = pinned.iter().map(|it| it["plugin"].as_str().expect("a name")).collect();
    assert_eq!(names, ["puppet", "shelf"]);
    let lock = object(folder.read("plugins.lock"));
    assert_eq!((&lock["version"], &lock["plugins"]["shelf"]), (&json!(1), &pinned[1]["sha256"]));
    assert_eq!(folder.read("plugins.lock").lines().count(), 7, "a line each, for people to read and compare");
    assert_eq!(folder.names("").iter().filter(|name| name.contains("lock")).count(), 1, "nothing is left beside it");
    with_plugins(&folder, &count).exits(0);
    with_plugins(&folder, &["plugins", "pin", "--check"]).exits(0);
    assert!(printed(&with_plugins(&folder, &["plugins", "list"]).exits(0)).iter().all(|it| it["pinned"] == true));

    // Another one under the same name, as valid as the one before.
    let shelf = std::fs::read(folder.path().join("plugins/shelf.wasm")).expect("a plugin");
    folder.write("plugins/shelf.wasm", changed(&shelf));
    folder.write("plugins/extra.wasm", std::fs::read(guests().join("ledger.wasm")).expect("a guest"));
    std::fs::remove_file(folder.path().join("plugins/puppet.wasm")).expect("a plugin");
    let refused = error(with_plugins(&folder, &count), 3, "plugin-refused");
    says(&refused, "message", "is not the one that");
    says(&refused, "hint", "larder plugins pin");
    let run = with_plugins(&folder, &["plugins", "list"]).exits(3);
    assert!(run.stderr.contains("is not among the plugins that") && run.stdout.is_empty(), "{run:#?}");
    let run = with_plugins(&folder, &["plugins", "pin", "--check"]).exits(3);
    let states: Vec<_> = printed(&run).iter().map(|it| format!("{} {}", it["plugin"], it["state"])).collect();
    assert_eq!(states, [r#""extra" "unknown""#, r#""puppet" "missing""#, r#""shelf" "changed""#]);

    // Back as it was, it is loaded; and what somebody trusts can be pinned anew.
    folder.write("plugins/shelf.wasm", &shelf);
    with_plugins(&folder, &count).exits(0);
    folder.write("plugins/shelf.wasm", changed(&shelf));
    with_plugins(&folder, &["plugins", "pin"]).exits(0);
    with_plugins(&folder, &count).exits(0);
}

#[test]
fn pins_that_cannot_be_read_are_never_as_if_there_were_none() {
    let digest = "0".repeat(64);
    for broken in [
        String::new(),
        "{".into(),
        "[]".into(),
        "{}".into(),
        r#"{"version": 2, "plugins": {}}"#.into(),
        r#"{"version": 1, "plugins": {}, "more": 1}"#.into(),
        r#"{"version": 1, "plugins": {"shelf": "0"}}"#.into(),
        format!(r#"{{"version": 1, "plugins": {{"shelf": "{digest}", "shelf": "{digest}"}}}}"#),
        "folder".into(),
        "link".into(),
    ] {
        let folder = pinnable();
        match broken.as_str() {
            "folder" => std::fs::create_dir(folder.path().join("plugins.lock")).expect("a folder"),
            "link" => std::os::unix::fs::symlink("nowhere", folder.path().join("plugins.lock")).expect("a link"),
            text => folder.write("plugins.lock", text),
        }
        for arguments in
            [&["count", "templates"][..], &["plugins", "list"], &["plugins", "pin", "--check"], &["config", "check"]]
        {
            let mistake = error(with_plugins(&folder, arguments), 2, "configuration");
            assert!(mistake.to_string().contains("plugins.lock cannot be used"), "{broken}: {mistake:#}");
        }
    }
    // What somebody wants is written over it.
    let folder = pinnable();
    folder.write("plugins.lock", "{");
    with_plugins(&folder, &["plugins", "pin"]).exits(0);
    with_plugins(&folder, &["count", "templates"]).exits(0);
}

#[test]
fn no_store_is_lent_the_pins() {
    for grant in [json!({"files": {"directory": "@"}}), json!({"sql": {"type": "sqlite", "name": "@/plugins.lock"}})] {
        let folder = Folder::new(&json!({"storage": {"strategy": "shelf", "grants": grant}}).to_string());
        let mistake = error(with_plugins(&folder, &["config", "check"]), 2, "configuration");
        assert!(mistake.to_string().contains("would be lent"), "{mistake:#}");
    }
}
