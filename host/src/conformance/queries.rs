//! Queries: the same filter and the same order give the same entities everywhere, whoever filtered and sorted.

use std::collections::BTreeSet;

use larder_model::filter::{self, Filter};
use larder_model::path::Path;
use larder_model::{ErrorKind, Existing, Expectation, Query, SortKey, json};

use super::check::{Checked, ensure, ensure_eq, refused};
use super::entities::{loadable, save};
use super::place::Place;
use crate::query::Select;
use crate::repository::Repository;

/// Eight templates that differ where queries may go wrong: types, absence and null, case, script, names with dots.
async fn questionable(repository: &Repository) -> Checked {
    for (id, more) in [
        ("a", r#","n":1,"s":"alpha","flag":true,"tags":["x","y"],"o":{"p":1,"q":{"r":"deep"}},"image_id":null"#),
        ("b", r#","n":1.0,"s":"Alpha","flag":false,"tags":["y"],"o":{"p":2},"image_id":"ami-1""#),
        ("c", r#","n":2.5,"s":"beta","flag":null,"tags":[],"max_number":9"#),
        ("d", r#","n":"1","s":"","o":null"#),
        ("e", r#","n":null,"s":"álpha","tags":"xy","max_number":100"#),
        ("f", r#","n":10000000000000000000000001,"s":"100% _like_","tags":[1,null,"z"]"#),
        ("g", ""),
        ("h", r#","n":-5,"s":"alphabet","a.b":1,"a":{"b":2}"#),
    ] {
        save(repository, id, more).await?;
    }
    Ok(())
}

async fn ids_of(repository: &Repository, select: Select) -> Checked<String> {
    let found = repository.query("templates", select).collect().await?;
    Ok(found.into_iter().map(|entity| entity.id).collect())
}

async fn check_filter(repository: &Repository, written: &str, filter: Filter, expected: &str) -> Checked {
    let select = Select { filter: Some(filter.clone()), ..Select::default() };
    let mut found: Vec<char> = ids_of(repository, select.clone()).await?.chars().collect();
    found.sort();
    ensure_eq!(found.into_iter().collect::<String>(), expected, "{written}");
    ensure_eq!(repository.count("templates", Some(&filter)).await?, expected.len() as u64, "{written}");
    // Sorting and limiting must not change which entities there are.
    let sorted = Select { order_by: vec![key("template_id")?], limit: Some(3), ..select };
    ensure_eq!(ids_of(repository, sorted).await?, &expected[..expected.len().min(3)], "{written}");
    Ok(())
}

pub(super) async fn filters_hold_for_what_the_contract_says(place: Place) -> Checked {
    let repository = place.open().await?;
    questionable(&repository).await?;
    for (written, expected) in [
        ("n=1", "ab"),
        ("n=1.00", "ab"),
        ("n!=1", "cdefh"),
        ("n<2", "abh"),
        ("n<=2.5", "abch"),
        ("n>2", "cf"),
        ("n>=2.5", "cf"),
        (r#"n="1""#, "d"),
        ("n=null", "e"),
        ("n", "abcdefh"),
        ("n>10000000000000000000000000", "f"),
        ("n=10000000000000000000000000", ""),
        ("n=10000000000000000000000001.0", "f"),
        ("s=alpha", "a"),
        ("s!=alpha", "bcdefh"),
        ("s^=alpha", "ah"),
        ("s^=Alpha", "b"),
        ("s~=lph", "abeh"),
        ("s~=%", "f"),
        ("s~=_", "f"),
        (r#"s="""#, "d"),
        ("s>alpha", "ceh"),
        ("s<=Alpha", "bdf"),
        ("s=1", ""),
        ("flag=true", "a"),
        ("flag=false", "b"),
        ("flag=null", "c"),
        ("flag<true", "b"),
        ("flag!=true", "bc"),
        ("flag=1", ""),
        ("tags~=x", "ae"),
        ("tags~=1", "f"),
        ("tags~=null", "f"),
        ("tags~=z", "f"),
        ("tags", "abcef"),
        ("tags=xy", "e"),
        ("o.p=1", "a"),
        ("o.p", "ab"),
        ("o.q.r=deep", "a"),
        ("o=null", "d"),
        ("o", "abd"),
        (r#""a.b"=1"#, "h"),
        ("a.b=2", "h"),
        ("a.b=1", ""),
        ("image_id", "ab"),
        ("image_id=null", "a"),
        ("image_id=ami-1", "b"),
        ("image_id!=ami-1", "a"),
        ("max_number=10", "abdfgh"),
        ("max_number>10", "e"),
        ("max_number<10.0", "c"),
        ("name=Pool", "abcdefgh"),
        ("template_id>=g", "gh"),
        ("template_id=c", "c"),
        ("version=1", "abcdefgh"),
        ("nothing=1", ""),
        ("nothing!=1", ""),
    ] {
        check_filter(&repository, written, filter::parse_expression(written)?, expected).await?;
    }
    for (written, expected) in [
        ("{}", "abcdefgh"),
        (r#"{"n":1,"s":"alpha"}"#, "a"),
        (r#"{"not":{"n":1}}"#, "cdefgh"),
        (r#"{"not":{"field":"n","op":"exists"}}"#, "g"),
        (r#"{"not":{"field":"n","op":"!=","value":1}}"#, "abg"),
        (r#"{"not":{"not":{"flag":true}}}"#, "a"),
        (r#"{"any":[{"n":1},{"s":"beta"}]}"#, "abc"),
        (r#"{"all":[]}"#, "abcdefgh"),
        (r#"{"any":[]}"#, ""),
        (r#"{"field":"n","op":"in","value":[1,null,"1"]}"#, "abde"),
        (r#"{"field":"s","op":"in","value":[]}"#, ""),
        (r#"{"field":"n","op":"between","value":[1,3]}"#, "abc"),
        (r#"{"all":[{"field":"s","op":"begins-with","value":"alpha"},{"not":{"field":"n","op":"<","value":0}}]}"#, "a"),
        (r#"{"any":[{"all":[{"flag":true},{"o.p":1}]},{"not":{"field":"s","op":"exists"}}]}"#, "ag"),
        (r#"{"all":[{"max_number":10},{"any":[{"image_id":"ami-1"},{"n":-5}]}]}"#, "bh"),
    ] {
        let tree = json::parse(written.as_bytes())?;
        check_filter(&repository, written, filter::parse_json(&tree)?, expected).await?;
    }
    Ok(())
}

/// A field to sort by, largest first behind a `-`.
pub(super) fn key(text: &str) -> Checked<SortKey> {
    let (field, descending) = match text.strip_prefix('-') {
        Some(field) => (field, true),
        None => (text, false),
    };
    Ok(SortKey { field: field.parse::<Path>()?, descending })
}

pub(super) async fn answers_are_sorted_across_types_and_limited(place: Place) -> Checked {
    let repository = place.open().await?;
    questionable(&repository).await?;
    for (order_by, filter, limit, expected) in [
        (&["n"][..], "", None, "gehabcfd"),
        (&["-n"], "", None, "dfcabheg"),
        (&["flag"], "", None, "defghcba"),
        (&["s"], "", None, "gdfbahce"),
        (&["-s"], "", None, "echabfdg"),
        (&["tags"], "", None, "dgheabfc"),
        (&["o.p", "-n"], "", None, "dfchegab"),
        (&["max_number", "-template_id"], "", None, "chgfdbae"),
        (&["image_id"], "", None, "cdefghab"),
        (&["-template_id"], "", None, "hgfedcba"),
        (&["n"], "", Some(3), "geh"),
        (&["-s"], "n", Some(2), "ec"),
        (&["max_number"], "s~=l", Some(100), "abfhe"),
        (&["n"], "", Some(0), ""),
    ] {
        let wanted = if filter.is_empty() { None } else { Some(filter::parse_expression(filter)?) };
        let order_by_keys = order_by.iter().map(|text| key(text)).collect::<Checked<Vec<_>>>()?;
        let select = Select { filter: wanted, order_by: order_by_keys, limit, index: None };
        ensure_eq!(ids_of(&repository, select).await?, expected, "{order_by:?} {filter} {limit:?}");
    }
    let any_two = Select { limit: Some(2), ..Select::default() };
    ensure_eq!(ids_of(&repository, any_two).await?.len(), 2);
    Ok(())
}

pub(super) async fn an_answer_of_many_pages_has_every_entity_once(place: Place) -> Checked {
    let repository = place.open().await?;
    let name = |n: usize| format!("template-{n:04}");
    let entities = (0..1200).map(|n| loadable(&name(n), &format!(r#","n":{},"odd":{}"#, n / 2, n % 2 == 1)));
    repository.load("templates", entities.collect(), Existing::Fail).await?;
    repository.flush().await?;

    let all: BTreeSet<String> = (0..1200).map(name).collect();
    let found = ids(&repository, Select::default()).await?;
    ensure_eq!(found.len(), 1200, "entities without an order");
    ensure_eq!(found.into_iter().collect::<BTreeSet<_>>(), all);

    // Largest first, ties by id.
    let expected: Vec<String> = (0..600).rev().flat_map(|pair| [name(2 * pair), name(2 * pair + 1)]).collect();
    ensure_eq!(ids(&repository, Select { order_by: vec![key("-n")?], ..Select::default() }).await?, expected);
    let select = Select { order_by: vec![key("-n")?], limit: Some(1100), ..Select::default() };
    ensure_eq!(ids(&repository, select).await?, expected[..1100].to_vec());

    let odd = filter::parse_expression("odd=true")?;
    let expected: Vec<String> = (0..600).map(|pair| name(2 * pair + 1)).collect();
    let select = Select { filter: Some(odd), order_by: vec![key("template_id")?], ..Select::default() };
    ensure_eq!(ids(&repository, select).await?, expected);
    Ok(())
}

async fn ids(repository: &Repository, select: Select) -> Checked<Vec<String>> {
    let found = repository.query("templates", select).collect().await?;
    Ok(found.into_iter().map(|entity| entity.id).collect())
}

pub(super) async fn an_index_that_is_named_is_used_and_an_unknown_one_refused(place: Place) -> Checked {
    let repository = place.open().await?;
    repository.prepare(false, false).await?;
    for (id, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let body = format!(r#"{{"id":"{id}","label":"{label}"}}"#);
        repository.save("things", body.as_bytes(), Expectation::Absent).await?;
    }
    let labelled = |index: &str| -> Checked<Select> {
        let filter = Some(filter::parse_expression("label=x")?);
        Ok(Select { filter, order_by: vec![key("-id")?], limit: None, index: Some(index.into()) })
    };
    let mut answer = repository.query("things", labelled("by-label")?);
    let mut found = Vec::new();
    while let Some(entities) = answer.next().await? {
        found.extend(entities.into_iter().map(|entity| entity.id));
    }
    ensure_eq!(found, ["c", "a"]);
    if let Some(used) = &answer.plan().index_used {
        ensure!(used.contains("by-label"), "the index `by-label` was named, and `{used}` used");
    }
    refused(repository.query("things", labelled("none-of-that-name")?).collect().await, ErrorKind::InvalidArgument)?;
    let select = Select { index: Some("by-label".into()), ..Select::default() };
    refused(repository.query("templates", select).collect().await, ErrorKind::InvalidArgument)?;
    Ok(())
}

/// The strategy's own pages, followed to their end, with something done between each two. The ids come in order.
async fn paged<W: Future<Output = Checked>>(
    repository: &Repository,
    order_by: &[SortKey],
    (limit, max_bytes): (u32, u32),
    mut between: impl FnMut(usize) -> W,
) -> Checked<Vec<String>> {
    let mut ids = Vec::new();
    let mut cursor = None;
    for page in 0.. {
        let query =
            Query { filter: None, order_by: order_by.to_vec(), limit, max_bytes, index: None, cursor: cursor.take() };
        let found = repository.find("templates", &query).await?;
        let bytes: usize = found.entities.iter().map(|entity| entity.body.len()).sum();
        let last = found.entities.last().map_or(0, |entity| entity.body.len());
        ensure!(
            found.entities.len() <= 1 || bytes - last < max_bytes as usize,
            "a page of {max_bytes} bytes has {bytes} in {} entities",
            found.entities.len()
        );
        ids.extend(found.entities.into_iter().map(|entity| entity.id));
        let Some(next) = found.next else { break };
        cursor = Some(next);
        between(page).await?;
    }
    Ok(ids)
}

pub(super) async fn pages_have_every_entity_once_that_nobody_wrote_meanwhile(place: Place) -> Checked {
    let repository = place.open().await?;
    let name = |n: usize| format!("t{n:03}");
    let padding = "padding ".repeat(20);
    let entities = (0..60).map(|n| loadable(&name(n), &format!(r#","n":{},"padding":"{padding}""#, n / 4)));
    repository.load("templates", entities.collect(), Existing::Fail).await?;
    repository.flush().await?;
    let kept: Vec<String> = (0..60).map(name).collect();
    for order_by in [vec![], vec![key("n")?], vec![key("-n")?, key("template_id")?]] {
        for bounds in [(7, 1 << 20), (1, 1), (1000, 2000)] {
            let quiet = paged(&repository, &order_by, bounds, |_| async { Ok(()) }).await?;
            let mut sorted = quiet.clone();
            sorted.sort();
            ensure_eq!(sorted, kept, "pages of {bounds:?}");

            // Others come and go before, behind and between, and are not counted.
            let mut busy = paged(&repository, &order_by, bounds, |page| {
                let repository = repository.clone();
                async move {
                    let id = format!("t{:03}-{}", (page * 7) % 60, page % 3);
                    save(&repository, &id, r#","n":7"#).await?;
                    if page % 2 == 1 {
                        let id = format!("t{:03}-{}", ((page - 1) * 7) % 60, (page - 1) % 3);
                        repository.delete("templates", &id, None).await?;
                    }
                    Ok(())
                }
            })
            .await?;
            busy.retain(|id| !id.contains('-'));
            busy.sort();
            ensure_eq!(busy, kept, "pages of {bounds:?} while others write");
            for entity in repository.query("templates", Select::default()).collect().await? {
                if entity.id.contains('-') {
                    repository.delete("templates", &entity.id, None).await?;
                }
            }
        }
    }
    Ok(())
}
