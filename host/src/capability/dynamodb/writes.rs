//! Writes with their conditions: one by one, and in a transaction.
//!
//! Where no answer came, a write is sent again, and its own first effect may then break its condition: only what is stored
//! can tell whether it was that one.

use std::collections::HashMap;

use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{
    AttributeValue, CancellationReason, ConditionCheck, Delete, Put, ReturnValuesOnConditionCheckFailure,
    TransactWriteItem,
};
use futures_util::{StreamExt, stream};
use larder_model::{Error, ErrorKind, Result, Retry};

use super::client::{Backoff, CONFLICTS_MAX, Failed, send};
use super::values::{self, item_from, item_into};
use super::{Action, Expression, Tables, Written, errors};

/// What the service takes in one transaction.
pub(super) const ACTIONS_MAX: usize = 100;
const TOKEN_CHARS_MAX: usize = 36;
/// Single writes of one call that are under way at a time.
const WRITES_SIDE_BY_SIDE: usize = 16;

const REFUSED_ITEM: ReturnValuesOnConditionCheckFailure = ReturnValuesOnConditionCheckFailure::AllOld;

type RawItem = HashMap<String, AttributeValue>;

impl Tables {
    /// Each by itself, side by side and in no order: no item may come twice.
    pub async fn write_items(&self, mut actions: Vec<Action>) -> Result<Vec<Result<Written>>> {
        self.clients().await?;
        if actions.len() == 1
            && let Some(action) = actions.pop()
        {
            return Ok(vec![self.write_item(action).await]);
        }
        let results = actions.into_iter().map(|action| self.write_item(action));
        Ok(stream::iter(results).buffered(WRITES_SIDE_BY_SIDE).collect().await)
    }

    async fn write_item(&self, action: Action) -> Result<Written> {
        let (clients, deadline) = (self.clients().await?, self.deadline());
        match action {
            Action::Put { collection, item, condition } => {
                let item = item_into(item)?;
                let text = condition.as_ref().map(|condition| condition.text.clone());
                let (names, placed) = values::placeholders([condition])?;
                let request = clients.tables.put_item();
                let request = request
                    .table_name(self.table(&collection)?)
                    .set_item(Some(item))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(placed)
                    .return_values_on_condition_check_failure(REFUSED_ITEM);
                match send(&clients.to_tables, deadline, || request.clone().send()).await {
                    Ok(_) => Ok(Written::Done),
                    Err(failed) => {
                        use aws_sdk_dynamodb::operation::put_item::PutItemError::ConditionalCheckFailedException as Refused;
                        let stored = match failed.answer.as_deref() {
                            Some(Refused(refused)) => refused.item.clone(),
                            _ => return Err(failed.of_write()),
                        };
                        let sent = request.get_item().as_ref();
                        let is_ours = stored.as_ref().zip(sent).is_some_and(|(a, b)| values::is_same_item(a, b));
                        refused(stored, failed.is_doubtful, is_ours)
                    }
                }
            }
            Action::Delete { collection, key, condition } => {
                let text = condition.as_ref().map(|condition| condition.text.clone());
                let (names, placed) = values::placeholders([condition])?;
                let request = clients.tables.delete_item();
                let request = request
                    .table_name(self.table(&collection)?)
                    .set_key(Some(item_into(key)?))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(placed)
                    .return_values_on_condition_check_failure(REFUSED_ITEM);
                match send(&clients.to_tables, deadline, || request.clone().send()).await {
                    Ok(_) => Ok(Written::Done),
                    Err(failed) => {
                        use aws_sdk_dynamodb::operation::delete_item::DeleteItemError::ConditionalCheckFailedException as Refused;
                        let stored = match failed.answer.as_deref() {
                            Some(Refused(refused)) => refused.item.clone(),
                            _ => return Err(failed.of_write()),
                        };
                        refused(stored, failed.is_doubtful, false)
                    }
                }
            }
            // A transaction is the only request that evaluates a condition and writes nothing.
            check @ Action::Check { .. } => {
                let written = self.send_transaction(vec![check], None).await.map_err(nothing_was_written)?;
                written.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Internal, "a check has no answer"))
            }
        }
    }

    /// All or none. One answer an action: where one is refused, none took effect.
    pub async fn transact(&self, actions: Vec<Action>, token: &str) -> Result<Vec<Written>> {
        if actions.len() > ACTIONS_MAX {
            return Err(Error::new(
                ErrorKind::LimitExceeded,
                format!("a transaction has at most {ACTIONS_MAX} actions, not {}", actions.len()),
            ));
        }
        if token.is_empty() || token.chars().count() > TOKEN_CHARS_MAX {
            return Err(Error::invalid(format!("the token of a transaction has 1 to {TOKEN_CHARS_MAX} characters")));
        }
        if actions.is_empty() {
            return Ok(Vec::new());
        }
        self.send_transaction(actions, Some(token.to_owned())).await
    }

    async fn send_transaction(&self, actions: Vec<Action>, token: Option<String>) -> Result<Vec<Written>> {
        let (clients, deadline) = (self.clients().await?, self.deadline());
        let count = actions.len();
        let actions = actions.into_iter().map(|action| self.transact_item(action)).collect::<Result<Vec<_>>>()?;
        let request = clients.tables.transact_write_items();
        let request = request.set_transact_items(Some(actions)).set_client_request_token(token);
        let mut backoff = Backoff::until(deadline);
        let (mut conflicts, mut was_doubtful) = (0, false);
        loop {
            let failed = match send(&clients.to_tables, deadline, || request.clone().send()).await {
                Ok(_) => return Ok(vec![Written::Done; count]),
                Err(failed) => failed,
            };
            was_doubtful |= failed.is_doubtful;
            let reasons = match failed.answer.as_deref() {
                Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => {
                    cancelled.cancellation_reasons()
                }
                _ => return Err(Failed { is_doubtful: was_doubtful, ..failed }.of_write()),
            };
            // The same token again would have answered as the first time, had that taken effect. So nothing did.
            let error = match cancelled(reasons, count) {
                Ok(written) => return Ok(written),
                Err(error) => error,
            };
            let is_worth_it = match error.kind {
                ErrorKind::Throttled => true,
                ErrorKind::VersionConflict => {
                    conflicts += 1;
                    conflicts < CONFLICTS_MAX
                }
                _ => false,
            };
            if !is_worth_it || !backoff.pause().await {
                return Err(error);
            }
        }
    }

    fn transact_item(&self, action: Action) -> Result<TransactWriteItem> {
        let item = TransactWriteItem::builder();
        let unmade = |error: aws_sdk_dynamodb::error::BuildError| Error::new(ErrorKind::Internal, error.to_string());
        Ok(match action {
            Action::Put { collection, item: stored, condition } => {
                let (text, names, placed) = condition_parts(condition)?;
                let put = Put::builder()
                    .table_name(self.table(&collection)?)
                    .set_item(Some(item_into(stored)?))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(placed)
                    .return_values_on_condition_check_failure(REFUSED_ITEM);
                item.put(put.build().map_err(unmade)?)
            }
            Action::Delete { collection, key, condition } => {
                let (text, names, placed) = condition_parts(condition)?;
                let delete = Delete::builder()
                    .table_name(self.table(&collection)?)
                    .set_key(Some(item_into(key)?))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(placed)
                    .return_values_on_condition_check_failure(REFUSED_ITEM);
                item.delete(delete.build().map_err(unmade)?)
            }
            Action::Check { collection, key, condition } => {
                let (text, names, placed) = condition_parts(Some(condition))?;
                let check = ConditionCheck::builder()
                    .table_name(self.table(&collection)?)
                    .set_key(Some(item_into(key)?))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(placed)
                    .return_values_on_condition_check_failure(REFUSED_ITEM);
                item.condition_check(check.build().map_err(unmade)?)
            }
        }
        .build())
    }
}

type Parts = (Option<String>, Option<HashMap<String, String>>, Option<RawItem>);

fn condition_parts(condition: Option<Expression>) -> Result<Parts> {
    let text = condition.as_ref().map(|condition| condition.text.clone());
    let (names, placed) = values::placeholders([condition])?;
    Ok((text, names, placed))
}

/// The answer to a write whose condition did not hold. One that was sent more than once may have broken it itself.
fn refused(stored: Option<RawItem>, is_doubtful: bool, is_ours: bool) -> Result<Written> {
    match (is_doubtful, is_ours) {
        (true, true) => Ok(Written::Done),
        (true, false) => Err(Error {
            retry: Retry::UnknownOutcome,
            ..Error::new(ErrorKind::Unavailable, "no answer came to a write, and what is stored now does not tell")
        }),
        (false, _) => Ok(Written::Refused(stored.filter(|item| !item.is_empty()).map(item_from))),
    }
}

/// A check that got no answer is of no consequence.
fn nothing_was_written(error: Error) -> Error {
    match error.retry {
        Retry::UnknownOutcome => Error { retry: Retry::Safe, ..error },
        _ => error,
    }
}

/// One answer an action where conditions did not hold, otherwise why the transaction was cancelled.
pub(super) fn cancelled(reasons: &[CancellationReason], count: usize) -> Result<Vec<Written>> {
    let code = |reason: &CancellationReason| reason.code().filter(|code| *code != "None").map(str::to_owned);
    let errors = reasons.iter().enumerate().filter_map(|(index, reason)| Some((index, reason, code(reason)?))).map(
        |(index, reason, code)| {
            (code.clone(), errors::of_reason(&code, reason.message().unwrap_or_default()).at_write(index))
        },
    );
    let (refused, others): (Vec<_>, Vec<_>) = errors.partition(|(code, _)| code == "ConditionalCheckFailed");
    // What would fail again goes first, then a refusal, which is as certain.
    if let Some((_, error)) = others.iter().find(|(_, error)| error.retry == Retry::Never) {
        return Err(error.clone());
    }
    if refused.is_empty() || reasons.len() != count {
        let other = others.into_iter().next().map(|(_, error)| Error { write_index: None, ..error });
        return Err(other.unwrap_or_else(|| {
            Error::new(ErrorKind::Unavailable, "the transaction was cancelled, and DynamoDB does not say why")
        }));
    }
    Ok(reasons
        .iter()
        .map(|reason| match reason.code() {
            Some("ConditionalCheckFailed") => {
                Written::Refused(reason.item.clone().filter(|item| !item.is_empty()).map(item_from))
            }
            _ => Written::Done,
        })
        .collect())
}
