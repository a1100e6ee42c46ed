//! What a failure means: its kind, and whether the request can have taken effect.
//!
//! A message holds what a person needs, and nothing that identifies a request or signs it.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use larder_model::{Error, ErrorKind, Retry};

use super::client::Failed;

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The service had enough for now: it did nothing.
    Throttled,
    /// Another transaction was under way on the same item: nothing was done.
    Conflict,
    /// It was sent, and no answer or no certain one came back.
    Lost,
    /// It was not sent.
    Unreached,
    /// It would fail again.
    Final,
}

/// A failed sending.
pub(super) struct Failure<E> {
    pub(super) error: Error,
    pub(super) class: Class,
    pub(super) answer: Option<Box<E>>,
}

impl<E> Failure<E> {
    fn new(class: Class, kind: ErrorKind, message: impl Into<String>) -> Self {
        let error = Error::new(kind, message);
        let error = match class {
            Class::Final => Error { retry: Retry::Never, ..error },
            _ => Error { retry: Retry::Safe, ..error },
        };
        Failure { error, class, answer: None }
    }
}

/// Reads what the SDK says.
pub(super) fn read<E, R>(error: SdkError<E, R>) -> Failure<E>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    if !matches!(error, SdkError::ServiceError(_))
        && let Some(failure) = of_credentials(&error)
    {
        return failure;
    }
    match error {
        SdkError::ServiceError(answered) => of_service(answered.into_err()),
        SdkError::TimeoutError(_) if is_unconnected(&error) => unreached(&error),
        SdkError::TimeoutError(_) => unanswered(),
        SdkError::DispatchFailure(_) if is_unconnected(&error) => unreached(&error),
        SdkError::DispatchFailure(_) => {
            Failure::new(Class::Lost, ErrorKind::Unavailable, format!("the connection broke off{}", io_cause(&error)))
        }
        SdkError::ResponseError(_) => {
            Failure::new(Class::Lost, ErrorKind::Unavailable, "what answered did not answer as DynamoDB does")
        }
        _ => Failure::new(
            Class::Final,
            ErrorKind::InvalidArgument,
            format!(
                "the request cannot be made: {}",
                without_identities(chain(&error).last().map(String::as_str).unwrap_or_default())
            ),
        ),
    }
}

/// A request took longer than one may.
pub(super) fn unanswered<E>() -> Failure<E> {
    Failure::new(Class::Lost, ErrorKind::Timeout, "DynamoDB did not answer in time")
}

/// The call's time is over in the middle of a request.
pub(super) fn overdue<E>() -> Failure<E> {
    Failure::new(Class::Lost, ErrorKind::Timeout, "DynamoDB did not answer within the time of the call")
}

/// The time is over, and not everything went through.
pub(super) fn throttled() -> Error {
    Error::new(ErrorKind::Throttled, "DynamoDB takes no more requests for now: the units a second are used up")
}

/// The service's word for what it answered.
pub(super) fn code_of<E: ProvideErrorMetadata>(failed: &Failed<E>) -> Option<&str> {
    failed.answer.as_ref()?.code()
}

fn of_service<E: ProvideErrorMetadata>(answer: E) -> Failure<E> {
    let code = answer.code().unwrap_or_default().to_owned();
    let said = answer.message().unwrap_or_default().trim_end_matches('.').to_owned();
    let described = if said.is_empty() { code.clone() } else { without_identities(&said) };
    let mut failure = of_code(&code, described);
    failure.answer = Some(Box::new(answer));
    failure
}

/// What a code means, wherever it stands: it is also a reason for which a transaction was cancelled.
fn of_code<E>(code: &str, said: String) -> Failure<E> {
    use ErrorKind::*;
    let fails = |kind, message: String| Failure::new(Class::Final, kind, message);
    match code {
        "ConditionalCheckFailedException" | "ConditionalCheckFailed" => {
            fails(VersionConflict, "the condition of a write did not hold".to_owned())
        }
        "TransactionConflictException"
        | "TransactionConflict"
        | "TransactionInProgressException"
        | "ReplicatedWriteConflictException" => {
            Failure::new(Class::Conflict, VersionConflict, "another transaction was under way on the same items")
        }
        "ProvisionedThroughputExceededException"
        | "ProvisionedThroughputExceeded"
        | "RequestLimitExceeded"
        | "ThrottlingException"
        | "Throttling"
        | "ThrottlingError"
        | "TooManyRequestsException" => Failure { error: throttled(), class: Class::Throttled, answer: None },
        "ResourceNotFoundException" => fails(NotFound, "there is no such table or index".to_owned()),
        "ResourceInUseException" => {
            let being_changed = Error::new(Unavailable, "the table is being made or changed by somebody else");
            Failure { error: being_changed, class: Class::Final, answer: None }
        }
        "ItemCollectionSizeLimitExceededException"
        | "ItemCollectionSizeLimitExceeded"
        | "LimitExceededException"
        | "RequestEntityTooLarge"
        | "RequestTooLarge" => fails(LimitExceeded, format!("DynamoDB: {said}")),
        "ValidationException" | "ValidationError" | "SerializationException" | "DuplicateItem" => {
            fails(InvalidArgument, format!("DynamoDB: {said}"))
        }
        "IdempotentParameterMismatchException" => {
            fails(InvalidArgument, "the token was used for another transaction within ten minutes".to_owned())
        }
        "AccessDeniedException" | "AccessDenied" => fails(Denied, format!("DynamoDB: {said}")),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "ExpiredTokenException"
        | "ExpiredToken" => fails(Denied, "DynamoDB does not know these credentials, or they have expired".to_owned()),
        // What was signed stands in the message.
        "InvalidSignatureException" | "IncompleteSignatureException" | "SignatureDoesNotMatch" => {
            fails(Denied, "DynamoDB does not take the signature: is the secret right, and the clock?".to_owned())
        }
        "InternalServerError" | "InternalFailure" | "ServiceUnavailable" | "ServiceUnavailableException" => {
            Failure::new(Class::Lost, Unavailable, format!("DynamoDB failed: {code}"))
        }
        "" => Failure::new(Class::Lost, Unavailable, "what answered did not answer as DynamoDB does"),
        code => fails(Internal, format!("DynamoDB: {code}: {said}")),
    }
}

/// What a reason means for which a transaction was cancelled.
pub(super) fn of_reason(code: &str, message: &str) -> Error {
    of_code::<()>(code, without_identities(message.trim_end_matches('.'))).error
}

/// What the service says without who asked and of what: a plugin is told it too. A refusal names the user, the account and
/// the resource; what remains is the action.
fn without_identities(said: &str) -> String {
    let is_account = |word: &str| word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_digit());
    let hide = |word: &str| {
        let bare = word.trim_matches(|sign: char| !sign.is_alphanumeric());
        if bare.contains("arn:") || bare.contains("://") || is_account(bare) {
            "…".to_owned()
        } else {
            word.to_owned()
        }
    };
    said.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}

fn of_credentials<E>(error: &(dyn std::error::Error + 'static)) -> Option<Failure<E>> {
    let mut next = Some(error);
    while let Some(error) = next {
        // The cache of the SDK says so itself where its source takes too long.
        if error.is::<CredentialsError>() || error.to_string().starts_with("identity resolver timed out") {
            let message = match error.downcast_ref() {
                Some(CredentialsError::CredentialsNotLoaded(_)) => "there are no credentials for AWS",
                Some(CredentialsError::InvalidConfiguration(_)) => "the AWS configuration gives no credentials",
                _ => "the credentials for AWS could not be had",
            };
            return Some(Failure::new(Class::Final, ErrorKind::Denied, message));
        }
        next = error.source();
    }
    None
}

/// Whether it did not come to a connection. The client says it in words only.
fn is_unconnected(error: &(dyn std::error::Error + 'static)) -> bool {
    chain(error).iter().any(|said| said.contains("(Connect)") || said.contains("connect timeout"))
}

fn unreached<E>(error: &(dyn std::error::Error + 'static)) -> Failure<E> {
    let message = format!("DynamoDB cannot be reached{}", io_cause(error));
    Failure::new(Class::Unreached, ErrorKind::Unavailable, message)
}

/// `: connection refused` and the like.
fn io_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return format!(": {}", io.kind());
        }
        next = error.source();
    }
    String::new()
}

/// What it says, and what its causes say.
fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut said = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        said.push(error.to_string());
        next = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_action_and_neither_user_account_nor_endpoint() {
        let said = "User: arn:aws:iam::123456789012:user/alice is not authorized to perform: dynamodb:GetItem on resource: \
                    arn:aws:dynamodb:us-east-1:123456789012:table/hostfactory_requests because of account 123456789012 at \
                    https://dynamodb.us-east-1.amazonaws.com/";
        let error = of_reason("AccessDenied", said);
        assert_eq!(error.kind, ErrorKind::Denied);
        assert_eq!(
            error.message,
            "DynamoDB: User: … is not authorized to perform: dynamodb:GetItem on resource: … because of account … at …"
        );
        let other = of_reason("ValidationException", "The provided key element does not match the schema.");
        assert_eq!(other.message, "DynamoDB: The provided key element does not match the schema");
    }
}
