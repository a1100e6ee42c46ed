//! A proxy between Larder and an engine, which does to chosen requests what a network and a busy service do: loses them,
//! loses their answers, keeps them waiting, refuses them, or carries out a part. No engine does that by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What is done to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Its connection is cut, and the engine never sees it.
    Cut,
    /// The engine has carried it out, and the answer is lost with the connection.
    LoseAnswer,
    /// It reaches the engine when it is released, and no sooner.
    Hold,
    /// It is answered with this exception of the service's, and the engine never sees it.
    Refuse(&'static str),
    /// A transaction is answered as cancelled, with one of these codes an action; what is more has `None`.
    Cancel(&'static [&'static str]),
    /// Of a batch only the first so many are carried out, and the others come back as not processed.
    Part(usize),
}

/// Which requests a fault is for, counted from when it was announced.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// One, the first being number 1.
    Nth(u64),
    /// So many.
    Next(u64),
    Always,
}

#[derive(Debug)]
struct Rule {
    operation: &'static str,
    when: When,
    fault: Fault,
    seen: u64,
}

#[derive(Debug, Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    /// Requests by operation.
    counts: Mutex<BTreeMap<String, u64>>,
    /// Requests that something was done to.
    faults: Mutex<u64>,
    released: Notify,
}

/// A running proxy.
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// Before the engine at this URL, which may come and go.
    pub async fn before(engine: &str) -> FaultProxy {
        let engine = engine.strip_prefix("http://").expect("an http URL").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared: Arc<Shared> = Arc::default();
        let proxy = FaultProxy { port, shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (engine, shared) = (engine.clone(), Arc::clone(&shared));
                // An end of either side is the end of both.
                tokio::spawn(async move { carry(client, &engine, &shared).await });
            }
        });
        proxy
    }

    /// What `endpoint_url` names.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on does this to requests of the operation. Of several the first that applies is done.
    pub fn on(&self, operation: &'static str, when: When, fault: Fault) {
        locked(&self.shared.rules).push(Rule { operation, when, fault, seen: 0 });
    }

    /// Does nothing to requests any more.
    pub fn be_good(&self) {
        locked(&self.shared.rules).clear();
    }

    /// Lets one go on that is held.
    pub fn release(&self) {
        self.shared.released.notify_one();
    }

    /// How many requests of the operation came.
    pub fn count(&self, operation: &str) -> u64 {
        locked(&self.shared.counts).get(operation).copied().unwrap_or(0)
    }

    /// How many requests came, by operation.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        locked(&self.shared.counts).clone()
    }

    /// How many requests something was done to.
    pub fn faults(&self) -> u64 {
        *locked(&self.shared.faults)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody fails with it in hand")
}

impl Shared {
    /// Counts a request, and says what is to be done to it.
    fn next(&self, operation: &str) -> Option<Fault> {
        *locked(&self.counts).entry(operation.to_owned()).or_default() += 1;
        let mut rules = locked(&self.rules);
        let mut chosen = None;
        for rule in rules.iter_mut().filter(|rule| rule.operation == operation) {
            rule.seen += 1;
            let applies = match rule.when {
                When::Nth(number) => rule.seen == number,
                When::Next(count) => rule.seen <= count,
                When::Always => true,
            };
            if applies && chosen.is_none() {
                chosen = Some(rule.fault.clone());
            }
        }
        *locked(&self.faults) += u64::from(chosen.is_some());
        chosen
    }
}

/// One message of HTTP with a known length.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    /// The next one on a connection; none at its end.
    async fn read(stream: &mut TcpStream, buffered: &mut Vec<u8>) -> Option<Message> {
        let end = loop {
            if let Some(position) = buffered.windows(4).position(|four| four == b"\r\n\r\n") {
                break position + 4;
            }
            more(stream, buffered).await?;
        };
        let head = String::from_utf8(buffered.drain(..end).collect()).ok()?;
        let message = Message { head, body: Vec::new() };
        let length = message.header("content-length").map_or(Some(0), |length| length.parse().ok())?;
        while buffered.len() < length {
            more(stream, buffered).await?;
        }
        Some(Message { body: buffered.drain(..length).collect(), ..message })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn operation(&self) -> String {
        self.header("x-amz-target").and_then(|it| it.rsplit('.').next()).unwrap_or_default().to_owned()
    }

    /// The same with another body, and without the sum of the one that it had.
    fn with_body(&self, body: &Value) -> Message {
        let body = body.to_string().into_bytes();
        let kept = self.head.trim_end().lines().filter(|line| {
            let name = line.split(':').next().unwrap_or_default();
            !name.eq_ignore_ascii_case("content-length") && !name.eq_ignore_ascii_case("x-amz-crc32")
        });
        let mut head: String = kept.map(|line| format!("{line}\r\n")).collect();
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        Message { head, body }
    }

    fn refusal(members: Value) -> Message {
        let status =
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/x-amz-json-1.0\r\nx-amzn-requestid: PROXY\r\n\r\n";
        Message { head: status.to_owned(), body: Vec::new() }.with_body(&members)
    }

    async fn write(&self, stream: &mut TcpStream) -> Option<()> {
        stream.write_all(&[self.head.as_bytes(), &self.body].concat()).await.ok()
    }
}

async fn more(stream: &mut TcpStream, buffered: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(buffered).await {
        Ok(1..) => Some(()),
        _ => None,
    }
}

/// Carries requests and answers until one side has ended.
async fn carry(mut client: TcpStream, engine: &str, shared: &Shared) -> Option<()> {
    let (mut from_client, mut from_engine) = (Vec::new(), Vec::new());
    let mut engine_stream: Option<TcpStream> = None;
    loop {
        let request = Message::read(&mut client, &mut from_client).await?;
        let fault = shared.next(&request.operation());
        let mut sent = None;
        match &fault {
            Some(Fault::Cut) => return None,
            Some(Fault::Refuse(kind)) => {
                let kind = format!("com.amazonaws.dynamodb.v20120810#{kind}");
                Message::refusal(json!({"__type": kind, "message": "said by the test"})).write(&mut client).await?;
                continue;
            }
            Some(Fault::Cancel(codes)) => {
                cancelled(&request, codes)?.write(&mut client).await?;
                continue;
            }
            Some(Fault::Hold) => shared.released.notified().await,
            Some(Fault::Part(count)) => {
                let mut body: Value = serde_json::from_slice(&request.body).ok()?;
                let rest = split_off(body["RequestItems"].as_object_mut()?, *count);
                sent = Some((request.with_body(&body), rest, *count));
            }
            Some(Fault::LoseAnswer) | None => {}
        }
        let (request, rest) = match sent {
            // The service takes no empty batch, and need not be asked.
            Some((_, rest, 0)) => {
                let body = json!({"UnprocessedItems": rest, "UnprocessedKeys": rest, "Responses": {}});
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.0\r\n\r\n".to_owned();
                Message { head, body: Vec::new() }.with_body(&body).write(&mut client).await?;
                continue;
            }
            Some((request, rest, _)) => (request, rest),
            None => (request, Map::new()),
        };
        let stream = match &mut engine_stream {
            Some(stream) => stream,
            none => none.insert(TcpStream::connect(engine).await.ok()?),
        };
        request.write(stream).await?;
        let mut answer = Message::read(stream, &mut from_engine).await?;
        if matches!(fault, Some(Fault::LoseAnswer)) {
            return None;
        }
        if !rest.is_empty() {
            let mut body: Value = serde_json::from_slice(&answer.body).ok()?;
            let name = if request.operation() == "BatchGetItem" { "UnprocessedKeys" } else { "UnprocessedItems" };
            // An engine that left some by itself would be left with them.
            assert!(body[name].as_object().is_none_or(Map::is_empty), "{body}");
            body[name] = Value::Object(rest);
            answer = answer.with_body(&body);
        }
        answer.write(&mut client).await?;
    }
}

/// Leaves so many of a batch's puts or keys, and gives the others.
fn split_off(tables: &mut Map<String, Value>, count: usize) -> Map<String, Value> {
    let mut left = count;
    let mut rest = Map::new();
    for (table, requests) in tables.iter_mut() {
        let mut others = requests.clone();
        let of = |requests: &mut Value| match requests {
            Value::Array(puts) => std::mem::take(puts),
            keys => std::mem::take(keys["Keys"].as_array_mut().expect("keys")),
        };
        let (mut kept, _) = (of(requests), of(&mut others));
        let more = kept.split_off(left.min(kept.len()));
        left -= kept.len();
        let put_back = |requests: &mut Value, all| match requests {
            Value::Array(puts) => *puts = all,
            keys => keys["Keys"] = Value::Array(all),
        };
        put_back(requests, kept);
        if !more.is_empty() {
            put_back(&mut others, more);
            rest.insert(table.clone(), others);
        }
    }
    tables.retain(|_, requests| {
        let list = if requests.is_array() { &*requests } else { &requests["Keys"] };
        list.as_array().is_some_and(|list| !list.is_empty())
    });
    rest
}

fn cancelled(request: &Message, codes: &[&str]) -> Option<Message> {
    let body: Value = serde_json::from_slice(&request.body).ok()?;
    let actions = body["TransactItems"].as_array()?.len();
    let codes = codes.iter().copied().chain(std::iter::repeat("None")).take(actions);
    let reasons: Vec<Value> = codes
        .map(|code| match code {
            "None" => json!({"Code": code}),
            code => json!({"Code": code, "Message": "said by the test"}),
        })
        .collect();
    Some(Message::refusal(json!({
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "Message": "Transaction cancelled, please refer cancellation reasons for specific reasons",
        "CancellationReasons": reasons,
    })))
}
