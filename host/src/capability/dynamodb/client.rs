//! Clients of the services, made when the first request is, and how a request is sent until it is answered.
//!
//! The SDK sends once: whether a write that was sent twice took effect at the first time is for this module to know.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::identity::IdentityCache;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_types::service_config::ServiceConfigKey;
use larder_model::{Error, ErrorKind, Retry};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

use super::errors::{self, Class};
use super::pace::Pace;
use crate::config::DynamodbGrant;

/// For a connection, however much time a call has.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(3);
/// For credentials from wherever they come: outside of EC2 nobody answers where an instance would ask for its own.
const CREDENTIALS_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// How often a request is sent that does not reach the service or gets no answer.
const FAULTS_MAX: u32 = 4;
/// How often a request is sent that meets another transaction.
pub(super) const CONFLICTS_MAX: u32 = 10;
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Clients of one store.
pub(super) struct Clients {
    pub(super) tables: aws_sdk_dynamodb::Client,
    /// None where the tables are not at AWS, and nothing says where they would be scaled.
    pub(super) scaling: Option<Scaling>,
    pub(super) to_tables: Sending,
}

/// The client of Application Auto Scaling.
pub(super) struct Scaling {
    pub(super) requests: aws_sdk_applicationautoscaling::Client,
    pub(super) to_scaling: Sending,
}

/// How requests are sent to one service.
pub(super) struct Sending {
    pub(super) pace: Pace,
    /// For the answer to one request: one whose answer is lost is sent again within the call's time.
    answer_timeout: Duration,
    timers: Timers,
}

impl Sending {
    /// `timeout` is that of a call.
    pub(super) fn new(timeout: Duration) -> Sending {
        Sending { pace: Pace::new(), answer_timeout: timeout / 3, timers: Timers(Mutex::default()) }
    }
}

/// Timers of requests. They stay set between requests, because to put one off costs nothing, and to set another one wakes
/// the thread that waits for all of them.
struct Timers(Mutex<Vec<Pin<Box<Sleep>>>>);

impl Timers {
    /// What the future comes to, none where it does not in time.
    async fn until<F: Future>(&self, deadline: Instant, future: F) -> Option<F::Output> {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let timer = kept().pop();
        let mut timer = timer.unwrap_or_else(|| Box::pin(sleep_until(deadline)));
        timer.as_mut().reset(deadline);
        let ended = tokio::select! {
            biased;
            ended = future => Some(ended),
            () = timer.as_mut() => None,
        };
        kept().push(timer);
        ended
    }
}

/// Makes the clients. Credentials are looked for with the first request, where everybody who uses AWS has them:
/// environment, profile, single sign-on, web identity, container, instance.
pub(super) async fn connect(grant: &DynamodbGrant, timeout: Duration) -> Result<Clients, Error> {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
    // An instance would be asked for its region last, and where there is none, nobody answers.
    let region = RegionProviderChain::first_try(grant.region.clone().map(Region::new));
    let region = match &grant.profile {
        // A profile that is named counts for more than the environment: each store may have its own.
        Some(name) => {
            let own = ProfileFileRegionProvider::builder().profile_name(name).build();
            let region = region.or_else(own).or_else(EnvironmentVariableRegionProvider::new()).region().await;
            let around = ProviderConfig::default().with_http_client(http).with_region(region.clone());
            let credentials = ProfileFileCredentialsProvider::builder().configure(&around).profile_name(name).build();
            loader = loader.profile_name(name).credentials_provider(credentials);
            region
        }
        None => {
            let usual = ProfileFileRegionProvider::new();
            region.or_else(EnvironmentVariableRegionProvider::new()).or_else(usual).region().await
        }
    };
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT_MAX.min(timeout / 2)).build();
    let config = loader
        .region(region)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        // Each request has a deadline for its answer to the last byte; this would set further timers for each.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .identity_cache(IdentityCache::lazy().load_timeout(CREDENTIALS_TIMEOUT_MAX.min(timeout)).build())
        .load()
        .await;
    if config.region().is_none() {
        let message = "no region is named: not by the store, the AWS profile or the environment";
        return Err(Error { retry: Retry::Never, ..Error::new(ErrorKind::Unavailable, message) });
    }

    let endpoint = grant.endpoint_url.clone().or_else(|| endpoint(&config, "DynamoDB"));
    let is_aws = endpoint.as_deref().is_none_or(is_aws);
    let has_scaling = is_aws || endpoint_of_scaling(&config);
    let mut tables = aws_sdk_dynamodb::config::Builder::from(&config);
    tables.set_endpoint_url(endpoint);
    Ok(Clients {
        tables: aws_sdk_dynamodb::Client::from_conf(tables.build()),
        scaling: has_scaling.then(|| Scaling {
            requests: aws_sdk_applicationautoscaling::Client::new(&config),
            to_scaling: Sending::new(timeout),
        }),
        to_tables: Sending::new(timeout),
    })
}

fn endpoint_of_scaling(config: &SdkConfig) -> bool {
    endpoint(config, "Application Auto Scaling").is_some()
}

/// What the environment or the profile says of a service's endpoint.
fn endpoint(config: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let configured = config.service_config().and_then(|it| it.load_config(key.ok()?));
    configured.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// Whether that is AWS itself, such as an endpoint in somebody's own network.
fn is_aws(endpoint: &str) -> bool {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().any(|domain| host.ends_with(domain))
}

/// A request that was not answered as it should be.
pub(super) struct Failed<E> {
    /// As for a request that changes nothing.
    pub(super) error: Error,
    /// What the service answered, where it did.
    pub(super) answer: Option<Box<E>>,
    /// An earlier or this sending may have taken effect.
    pub(super) is_doubtful: bool,
}

impl<E> Failed<E> {
    /// Nothing can have taken effect.
    pub(super) fn of_read(self) -> Error {
        self.error
    }

    /// It may have taken effect where no answer came.
    pub(super) fn of_write(self) -> Error {
        match self.is_doubtful {
            true => Error { retry: Retry::UnknownOutcome, ..self.error },
            false => self.error,
        }
    }
}

/// Sends a request again until it is answered, the deadline has come or it is of no use.
pub(super) async fn send<T, E, R, F>(
    to: &Sending,
    deadline: Instant,
    request: impl FnMut() -> F,
) -> Result<T, Failed<E>>
where
    F: Future<Output = Result<T, SdkError<E, R>>>,
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    send_with(to, deadline, WhenThrottled::SendAgain, request).await
}

/// What to do where the service throttles a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenThrottled {
    SendAgain,
    /// There is another way for what it asks.
    GiveUp,
}

/// As [`send`].
pub(super) async fn send_with<T, E, R, F>(
    to: &Sending,
    deadline: Instant,
    when_throttled: WhenThrottled,
    mut request: impl FnMut() -> F,
) -> Result<T, Failed<E>>
where
    F: Future<Output = Result<T, SdkError<E, R>>>,
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let Sending { pace, timers, answer_timeout } = to;
    let mut backoff = Backoff::until(deadline);
    let (mut faults, mut conflicts, mut is_doubtful) = (0, 0, false);
    loop {
        let Ok(turn) = timeout_at(deadline, pace.turn()).await else {
            return Err(Failed { error: errors::throttled(), answer: None, is_doubtful });
        };
        let due = deadline.min(Instant::now() + *answer_timeout);
        let failure = match timers.until(due, request()).await {
            Some(Ok(answer)) => {
                pace.answered();
                return Ok(answer);
            }
            Some(Err(error)) => errors::read(error),
            None if due == deadline => errors::overdue(),
            None => errors::unanswered(),
        };
        if failure.class == Class::Throttled {
            pace.throttled();
        }
        drop(turn);
        is_doubtful |= failure.class == Class::Lost;
        let is_worth_it = match failure.class {
            Class::Throttled => when_throttled == WhenThrottled::SendAgain,
            Class::Conflict => {
                conflicts += 1;
                conflicts < CONFLICTS_MAX
            }
            Class::Lost | Class::Unreached => {
                faults += 1;
                faults < FAULTS_MAX
            }
            Class::Final => false,
        };
        if !is_worth_it || !backoff.pause().await {
            return Err(Failed { error: failure.error, answer: failure.answer, is_doubtful });
        }
    }
}

/// Pauses that grow, each of a random length, so that those who were turned away together do not come back together.
pub(super) struct Backoff {
    deadline: Instant,
    most: Duration,
}

impl Backoff {
    pub(super) fn until(deadline: Instant) -> Backoff {
        Backoff { deadline, most: PAUSE_MIN }
    }

    /// Something went through meanwhile.
    pub(super) fn reset(&mut self) {
        self.most = PAUSE_MIN;
    }

    /// Waits, or says that there is no time left for it.
    pub(super) async fn pause(&mut self) -> bool {
        // The keys of a `RandomState` are random.
        let part = RandomState::new().hash_one(0) % 1024;
        let pause = self.most * (part as u32) / 1024;
        self.most = (self.most * 2).min(PAUSE_MAX);
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        sleep(pause).await;
        true
    }
}
