//! What keeps a plugin's SQL inside its PostgreSQL database, before the server sees it.
//!
//! The server is the first guard: the user that larder connects as is no superuser and reads no files of the server
//! ([`super`] looks at that), a statement goes through the extended protocol, which takes one and no more, and a
//! transaction that only reads is one to the server too. What is left is what any user may do: change the settings of its
//! connection, end the host's transaction, run a text that the statement only carries (`query_to_xml`), reach other
//! databases with an extension, wait. So a statement is let through by what it is made of: the words that it begins
//! with, the functions that it calls and the catalogs that it names are on lists, and everything else is denied.
//!
//! A text is cut into tokens by the rules of PostgreSQL's scanner. Where the two could differ, the text is refused:
//! names and strings with Unicode escapes, and anything that is not closed.

/// Why a text is not run.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    /// It may not; what it would have done.
    Denied(String),
    /// It is no statement.
    Invalid(String),
}

/// What a statement is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It changes nothing, so that it can be sent again.
    Read,
    /// It may change something.
    Write,
}

/// Functions that compute, describe tables, or aggregate. None of them changes a setting, waits, runs a text, reaches a
/// file or another database, or makes much out of little.
const FUNCTIONS: &[&str] = &[
    // Of values.
    "abs",
    "array_agg",
    "array_length",
    "array_to_string",
    "ascii",
    "btrim",
    "cardinality",
    "ceil",
    "char_length",
    "chr",
    "coalesce",
    "concat",
    "convert_from",
    "convert_to",
    "date_trunc",
    "decode",
    "encode",
    "extract",
    "floor",
    "greatest",
    "hashtext",
    "hashtextextended",
    "least",
    "left",
    "length",
    "lower",
    "ltrim",
    "md5",
    "mod",
    "nullif",
    "octet_length",
    "overlay",
    "position",
    "quote_ident",
    "quote_literal",
    "quote_nullable",
    "replace",
    "reverse",
    "right",
    "round",
    "rtrim",
    "sign",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "substring",
    "to_char",
    "to_timestamp",
    "trim",
    "trunc",
    "unnest",
    "upper",
    // Of JSON.
    "json_agg",
    "json_array_elements",
    "json_array_elements_text",
    "json_array_length",
    "json_build_array",
    "json_build_object",
    "json_each",
    "json_each_text",
    "json_extract_path",
    "json_extract_path_text",
    "json_object_keys",
    "json_populate_recordset",
    "json_to_record",
    "json_to_recordset",
    "json_typeof",
    "jsonb_agg",
    "jsonb_array_elements",
    "jsonb_array_elements_text",
    "jsonb_array_length",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_each",
    "jsonb_each_text",
    "jsonb_extract_path",
    "jsonb_extract_path_text",
    "jsonb_object_keys",
    "jsonb_to_record",
    "jsonb_to_recordset",
    "jsonb_typeof",
    "row_to_json",
    "to_json",
    "to_jsonb",
    // Of many rows.
    "avg",
    "bool_and",
    "bool_or",
    "count",
    "dense_rank",
    "first_value",
    "generate_series",
    "lag",
    "last_value",
    "lead",
    "max",
    "min",
    "rank",
    "row_number",
    "string_agg",
    "sum",
    // Of the database.
    "clock_timestamp",
    "col_description",
    "current_database",
    "current_schema",
    "current_schemas",
    "current_setting",
    "format_type",
    "has_any_column_privilege",
    "has_column_privilege",
    "has_database_privilege",
    "has_schema_privilege",
    "has_table_privilege",
    "now",
    "obj_description",
    "pg_column_size",
    "pg_database_size",
    "pg_get_constraintdef",
    "pg_get_expr",
    "pg_get_indexdef",
    "pg_indexes_size",
    "pg_is_in_recovery",
    "pg_relation_size",
    "pg_table_is_visible",
    "pg_table_size",
    "pg_total_relation_size",
    "pg_typeof",
    "to_regclass",
    "version",
];

/// Words of the language, and of types, that a parenthesis follows without a call.
const WORDS: &[&str] = &[
    "all",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "between",
    "bit",
    "by",
    "case",
    "cast",
    "char",
    "character",
    "check",
    "conflict",
    "cube",
    "decimal",
    "default",
    "distinct",
    "else",
    "end",
    "escape",
    "except",
    "exists",
    "explain",
    "filter",
    "float",
    "from",
    "group",
    "having",
    "ilike",
    "in",
    "include",
    "interval",
    "intersect",
    "is",
    "join",
    "key",
    "lateral",
    "like",
    "limit",
    "materialized",
    "not",
    "numeric",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "over",
    "partition",
    "recursive",
    "returning",
    "rollup",
    "row",
    "select",
    "set",
    "similar",
    "some",
    "symmetric",
    "then",
    "time",
    "timestamp",
    "timestamptz",
    "to",
    "union",
    "unique",
    "using",
    "values",
    "varchar",
    "varying",
    "when",
    "where",
    "with",
    "zone",
];

/// The catalogs that describe tables. The others tell of other users, other sessions or settings, and `pg_settings` changes
/// them.
const CATALOGS: &[&str] = &[
    "pg_am",
    "pg_attrdef",
    "pg_attribute",
    "pg_catalog",
    "pg_class",
    "pg_collation",
    "pg_constraint",
    "pg_depend",
    "pg_description",
    "pg_index",
    "pg_indexes",
    "pg_inherits",
    "pg_namespace",
    "pg_opclass",
    "pg_proc",
    "pg_sequence",
    "pg_tables",
    "pg_trigger",
    "pg_type",
    "pg_views",
];

/// What a table may not be altered to: its owner, what runs by itself, who sees what of it.
const ALTERATIONS_DENIED: &[&str] = &[
    "attach",
    "cluster",
    "detach",
    "disable",
    "enable",
    "force",
    "inherit",
    "owner",
    "policy",
    "replica",
    "rule",
    "security",
    "tablespace",
    "trigger",
];

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A keyword or a name, in lower case.
    Word(String),
    /// A name in quotes.
    Quoted(String),
    /// A string, a number or a parameter.
    Literal,
    Symbol(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(name) if name == word)
    }

    fn is_one_of(&self, words: &[&str]) -> bool {
        matches!(self, Token::Word(name) if words.contains(&name.as_str()))
    }
}

/// Whether the text is one statement that a plugin may send, and what it is for.
pub(super) fn check(text: &str) -> Result<Purpose, Refusal> {
    let mut tokens = tokens(text)?;
    while tokens.last() == Some(&Token::Symbol(';')) {
        tokens.pop();
    }
    if tokens.contains(&Token::Symbol(';')) {
        return Err(Refusal::Denied("a second statement behind a semicolon".to_owned()));
    }
    let purpose = purpose(&tokens)?;
    let creates =
        if tokens[0].is("create") { tokens.get(1).filter(|what| !what.is("unique")).or(tokens.get(2)) } else { None };
    for (i, token) in tokens.iter().enumerate() {
        let name = match token {
            Token::Word(name) | Token::Quoted(name) => name.as_str(),
            _ => continue,
        };
        // A table is made from a query with it.
        if token.is("into") && (i == 0 || !tokens[i - 1].is("insert")) {
            return Err(Refusal::Denied("SELECT … INTO".to_owned()));
        }
        if tokens.get(i + 1) == Some(&Token::Symbol('(')) && !may_precede_parenthesis(&tokens, i, creates) {
            return Err(Refusal::Denied(format!("a call of the function `{name}`")));
        }
        let is_known = || CATALOGS.contains(&name) || FUNCTIONS.contains(&name);
        if name.len() > 3 && name.is_char_boundary(3) && name[..3].eq_ignore_ascii_case("pg_") && !is_known() {
            return Err(Refusal::Denied(format!("the use of `{name}`")));
        }
    }
    Ok(purpose)
}

/// What the statement is, by the words that it begins with.
fn purpose(tokens: &[Token]) -> Result<Purpose, Refusal> {
    let word = |i: usize| match tokens.get(i) {
        Some(Token::Word(word)) => word.as_str(),
        _ => "",
    };
    let denied = |what: String| Err(Refusal::Denied(what));
    match (word(0), word(1)) {
        ("", _) => match tokens {
            [] => Err(Refusal::Invalid("a statement is empty".to_owned())),
            _ => Err(Refusal::Invalid("a statement begins with a keyword".to_owned())),
        },
        ("select" | "values", _) => Ok(Purpose::Read),
        ("with" | "insert" | "update" | "delete" | "analyze", _) => Ok(Purpose::Write),
        ("explain", _) => explained(tokens),
        ("create", "table" | "index") => match tokens.iter().any(|token| token.is("execute")) {
            true => denied("EXECUTE".to_owned()),
            false => Ok(Purpose::Write),
        },
        ("create", "unique") if word(2) == "index" => Ok(Purpose::Write),
        ("alter", "table") => match tokens.iter().find(|token| token.is_one_of(ALTERATIONS_DENIED)) {
            Some(Token::Word(word)) => denied(format!("ALTER TABLE … {}", word.to_ascii_uppercase())),
            _ => Ok(Purpose::Write),
        },
        ("drop", "index") => Ok(Purpose::Write),
        ("comment", "on") if matches!(word(2), "table" | "column" | "index") => Ok(Purpose::Write),
        (first @ ("create" | "alter" | "drop" | "comment"), second) => {
            denied(format!("the statement {} {}", first.to_ascii_uppercase(), second.to_ascii_uppercase()))
        }
        (first, _) => denied(format!("the statement {}", first.to_ascii_uppercase())),
    }
}

/// The statement behind EXPLAIN and its options.
fn explained(tokens: &[Token]) -> Result<Purpose, Refusal> {
    let mut rest = &tokens[1..];
    let mut runs = false;
    if rest.first() == Some(&Token::Symbol('(')) {
        let end = rest.iter().position(|token| *token == Token::Symbol(')'));
        let Some(end) = end else { return Err(Refusal::Invalid("the options of EXPLAIN are not closed".to_owned())) };
        runs = rest[..end].iter().any(|token| token.is("analyze"));
        rest = &rest[end + 1..];
    }
    while let Some(option) = rest.first().filter(|token| token.is_one_of(&["analyze", "verbose"])) {
        runs |= option.is("analyze");
        rest = &rest[1..];
    }
    match rest.first() {
        Some(first) if first.is_one_of(&["select", "values", "with", "insert", "update", "delete"]) => {
            Ok(if runs && purpose(rest)? == Purpose::Write { Purpose::Write } else { Purpose::Read })
        }
        _ => Err(Refusal::Denied("EXPLAIN of such a statement".to_owned())),
    }
}

/// Whether the name at `i`, which a parenthesis follows, is no call, or the call of a function that is let through.
fn may_precede_parenthesis(tokens: &[Token], i: usize, creates: Option<&Token>) -> bool {
    // Where the qualified name begins.
    let mut first = i;
    while first >= 2 && tokens[first - 1] == Token::Symbol('.') {
        first -= 2;
    }
    let qualifiers: Vec<&str> = tokens[first..i]
        .iter()
        .filter_map(|token| match token {
            Token::Word(name) | Token::Quoted(name) => Some(name.as_str()),
            _ => None,
        })
        .collect();
    // A list of columns follows the name of a table, or of what stands for one.
    if let Some(before) = first.checked_sub(1).map(|before| &tokens[before]) {
        let names = ["into", "references", "table", "as", "with", "recursive"];
        let also = match creates {
            Some(what) if what.is("table") => "exists",
            Some(what) if what.is("index") => "on",
            _ => "",
        };
        if before.is_one_of(&names) || before.is(also) {
            return true;
        }
    }
    match &tokens[i] {
        Token::Word(word) if qualifiers.is_empty() && WORDS.contains(&word.as_str()) => true,
        Token::Word(name) | Token::Quoted(name) => {
            matches!(qualifiers.as_slice(), [] | ["pg_catalog"]) && FUNCTIONS.contains(&name.as_str())
        }
        _ => false,
    }
}

/// The text as PostgreSQL's scanner cuts it.
fn tokens(text: &str) -> Result<Vec<Token>, Refusal> {
    if text.contains('\0') {
        return Err(Refusal::Invalid("a statement holds a NUL character".to_owned()));
    }
    let open = |what: &str| Refusal::Invalid(format!("a {what} is not closed"));
    let is_name_start = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii();
    let is_name = |c: char| is_name_start(c) || c.is_ascii_digit() || c == '$';
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        // The scanner's blanks, and no others: it takes other spaces for letters.
        if matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}') {
            rest = &rest[1..];
        } else if rest.starts_with("--") {
            rest = rest.find(['\n', '\r']).map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = after_comment(rest).ok_or_else(|| open("comment"))?;
        } else if c == '\'' {
            rest = after_string(&rest[1..], false).ok_or_else(|| open("string"))?;
            tokens.push(Token::Literal);
        } else if c == '"' {
            let (name, after) = quoted_name(&rest[1..]).ok_or_else(|| open("name"))?;
            tokens.push(Token::Quoted(name));
            rest = after;
        } else if let Some(after) = rest.strip_prefix('$') {
            let tag_end = after.find(|c: char| !(is_name(c) && c != '$')).unwrap_or(after.len());
            let (tag, after) = after.split_at(tag_end);
            if tag.starts_with(|c: char| c.is_ascii_digit()) {
                // What follows the digits of a parameter is no part of it to some versions of the scanner.
                if tag.contains(|c: char| !c.is_ascii_digit()) {
                    return Err(Refusal::Invalid("a parameter is `$1`, `$2` …".to_owned()));
                }
                rest = after;
            } else {
                let body = after.strip_prefix('$').ok_or_else(|| Refusal::Invalid("a `$` stands alone".to_owned()))?;
                let end = format!("${tag}$");
                rest = body.find(&end).map(|at| &body[at + end.len()..]).ok_or_else(|| open("string"))?;
            }
            tokens.push(Token::Literal);
        } else if is_name_start(c) {
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let word = word.to_ascii_lowercase();
            match word.as_str() {
                "u" if after.starts_with("&'") || after.starts_with("&\"") => {
                    return Err(Refusal::Denied("Unicode escapes (U&)".to_owned()));
                }
                "e" if after.starts_with('\'') => {
                    rest = after_string(&after[1..], true).ok_or_else(|| open("string"))?;
                    tokens.push(Token::Literal);
                }
                "b" | "x" | "n" if after.starts_with('\'') => rest = after,
                _ => {
                    tokens.push(Token::Word(word));
                    rest = after;
                }
            }
        } else if c.is_ascii_digit() {
            let end = rest.find(|c: char| !(is_name(c) || c == '.')).unwrap_or(rest.len());
            // A word that follows without a space is one to older versions of the scanner.
            if rest[..end]
                .trim_end_matches(|c: char| c.is_ascii_digit())
                .contains(|c: char| !matches!(c, '0'..='9' | '.' | 'e' | 'E'))
            {
                return Err(Refusal::Invalid("a word follows a number without a space".to_owned()));
            }
            tokens.push(Token::Literal);
            rest = &rest[end..];
        } else {
            tokens.push(Token::Symbol(c));
            rest = &rest[c.len_utf8()..];
        }
    }
    Ok(tokens)
}

/// What follows a comment, which may hold others.
fn after_comment(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    let mut rest = text;
    loop {
        if let Some(after) = rest.strip_prefix("/*") {
            (depth, rest) = (depth + 1, after);
        } else if let Some(after) = rest.strip_prefix("*/") {
            (depth, rest) = (depth - 1, after);
            if depth == 0 {
                return Some(rest);
            }
        } else {
            rest = &rest[rest.chars().next()?.len_utf8()..];
        }
    }
}

/// What follows a string's closing quote; `text` begins behind the opening one.
fn after_string(text: &str, has_escapes: bool) -> Option<&str> {
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' if has_escapes => drop(characters.next()?),
            '\'' if text[at + 1..].starts_with('\'') => drop(characters.next()),
            '\'' => return Some(&text[at + 1..]),
            _ => {}
        }
    }
    None
}

/// A name in quotes, and what follows it; `text` begins behind the opening one.
fn quoted_name(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"')?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return Some((name, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_strategy_needs_is_let_through() {
        for (text, expected) in [
            ("SELECT \"a\", \"b\"::text FROM \"t\" WHERE \"id\" IN ($1, $2) FOR UPDATE", Purpose::Read),
            ("select count(*) from \"t\" where (\"a\" = $1) and \"n\" between 1e5 and 2;", Purpose::Read),
            ("SELECT json_build_array(\"a\")::text FROM (SELECT 1 LIMIT 3) AS x", Purpose::Read),
            (
                "INSERT INTO \"t\" (\"a\", \"b\") VALUES ($1, $2::timestamp), ($3, $4) ON CONFLICT (\"a\") DO UPDATE SET \"b\" = excluded.\"b\"",
                Purpose::Write,
            ),
            (
                "INSERT INTO s.\"t\" (\"a\") SELECT x FROM json_to_recordset($1::json) AS r(\"x\" varchar(3))",
                Purpose::Write,
            ),
            ("WITH x (a) AS (SELECT 1) DELETE FROM t USING x WHERE t.a = x.a RETURNING (t.a)", Purpose::Write),
            (
                "CREATE TABLE IF NOT EXISTS \"t\" (\"a\" VARCHAR(255) COLLATE \"C\" PRIMARY KEY, b NUMERIC(3,1) DEFAULT (1) CHECK (b > 0), FOREIGN KEY (\"b\") REFERENCES \"u\"(\"id\"))",
                Purpose::Write,
            ),
            ("CREATE UNIQUE INDEX IF NOT EXISTS \"i\" ON \"t\" (\"a\", \"b\") WHERE \"b\" IS NOT NULL", Purpose::Write),
            ("ALTER TABLE \"t\" ADD COLUMN \"c\" TEXT", Purpose::Write),
            ("EXPLAIN (FORMAT JSON) SELECT 1", Purpose::Read),
            ("EXPLAIN ANALYZE DELETE FROM t", Purpose::Write),
            (
                "SELECT a.attname FROM pg_catalog.pg_attribute AS a WHERE pg_catalog.pg_table_is_visible(a.attrelid)",
                Purpose::Read,
            ),
            ("-- a comment; with one\nSELECT 'a;b', $tag$;COPY$tag$, \"a;b\" /* ; /* ; */ ; */ ", Purpose::Read),
            ("SELECT E'\\';' || '''' || 'pg_read_file(''x'')'", Purpose::Read),
            ("COMMENT ON TABLE \"t\" IS 'x'", Purpose::Write),
        ] {
            assert_eq!(check(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_leads_out_is_denied_however_it_is_spelt() {
        for text in [
            "SELECT 1; SELECT 2",
            "SELECT 1;;COMMIT",
            "COPY t TO PROGRAM 'id'",
            "/* */ cOpY t FROM '/etc/passwd'",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT \"pg_read_file\"('/etc/passwd')",
            "SELECT pg_catalog . \"pg_read_file\" /* */ ('/etc/passwd')",
            "SELECT U&\"\\0070g_read_file\"('/etc/passwd')",
            "SELECT u&'\\0061'",
            "SELECT set_config('statement_timeout', '0', false)",
            "SELECT \"set_config\"('role', 'x', false)",
            "SELECT public.count(1)",
            "SELECT * FROM dblink('x', 'y') AS t(a int)",
            "SELECT query_to_xml('select 1', true, true, '')",
            "SELECT 1 FROM t JOIN u ON lo_import('/etc/passwd') = 1",
            "CREATE TABLE x AS SELECT 1 FROM t JOIN u ON lo_import('/etc/passwd') = 1",
            "SELECT lo_export(1, '/tmp/x')",
            "SELECT pg_sleep(10)",
            "SELECT pg_advisory_lock(1)",
            "SELECT nextval('s')",
            "SELECT repeat('x', 1000000000)",
            "SELECT 1 OPERATOR(pg_catalog.+) 1",
            "UPDATE pg_settings SET setting = '0' WHERE name = 'statement_timeout'",
            "UPDATE \"pg_settings\" SET setting = '0'",
            "SELECT * FROM pg_stat_activity",
            "SELECT * FROM PG_authid",
            "SELECT 1 INTO x",
            "WITH a AS (SELECT 1) SELECT * INTO x FROM a",
            "SET ROLE x",
            "RESET ALL",
            "BEGIN",
            "COMMIT",
            "SAVEPOINT x",
            "DO $$ BEGIN END $$",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'select 1'",
            "CREATE EXTENSION dblink",
            "CREATE TEMP TABLE x (a int)",
            "CREATE VIEW v AS SELECT 1",
            "CREATE TABLE x AS EXECUTE sqlx_s_1",
            "CREATE OR REPLACE RULE r AS ON SELECT TO t DO NOTHING",
            "ALTER TABLE t OWNER TO x",
            "ALTER TABLE t DISABLE TRIGGER ALL",
            "ALTER SYSTEM SET x = 1",
            "ALTER ROLE x SUPERUSER",
            "DROP TABLE t",
            "TRUNCATE t",
            "GRANT ALL ON t TO x",
            "LOCK TABLE t",
            "VACUUM",
            "LISTEN x",
            "NOTIFY x",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "EXPLAIN EXECUTE p",
            "EXPLAIN (ANALYZE) CREATE TABLE x AS SELECT 1",
            "DECLARE c CURSOR FOR SELECT 1",
            "CALL p()",
            "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE",
            "SHOW data_directory",
        ] {
            assert!(matches!(check(text), Err(Refusal::Denied(_))), "{text}: {:?}", check(text));
        }
        for text in [
            "",
            ";",
            "  -- x",
            "(SELECT 1)",
            "SELECT 'x",
            "SELECT \"x",
            "SELECT /* /* */",
            "SELECT $a$ b",
            "SELECT 1\0",
            "SELECT 1or 2",
            "SELECT $1a",
        ] {
            assert!(matches!(check(text), Err(Refusal::Invalid(_))), "{text}: {:?}", check(text));
        }
    }
}
