//! What keeps a plugin's SQL inside its SQLite database. Beside [`super::copy`] the only place that calls SQLite itself.
//!
//! A text is let through in three steps. [`screen`] looks at its first keyword. [`check`] has SQLite's own parser compile
//! it, as one statement, while the authorizer listens: that decides what the text really does, however it is spelt. When
//! it then runs, the authorizer is still there, so a statement that SQLite compiles again is judged again.
//!
//! No state is shared with SQLite's callbacks by pointer: they run on the thread that compiles or runs the statement, so
//! what they note is in that thread's own variables.
#![allow(unsafe_code)]

use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr::{self, NonNull},
    slice,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use libsqlite3_sys as ffi;

/// The longest value or row. An entity is at most 16 MiB, and stands at most three times in a row.
const VALUE_BYTES_MAX: c_int = 64 << 20;

/// What SQLite may allocate in the whole process: one statement can ask for any number of the longest values.
const HEAP_BYTES_MAX: i64 = 1 << 30;

/// What a statement may begin with. `BEGIN` and its kin are the host's; `PRAGMA`, `ATTACH`, `VACUUM` lead out of the
/// database or change the connection.
const KEYWORDS: [&str; 12] = [
    "SELECT", "WITH", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE", "EXPLAIN", "CREATE", "DROP", "ALTER",
    "ANALYZE",
];

/// The pragmas that only tell about tables, which is how a plugin compares a table with what it expects. They are
/// reached as `pragma_table_xinfo('t')`; `quick_check` is what `ALTER TABLE … ADD` itself runs.
const PRAGMAS: [&str; 8] = [
    "table_info",
    "table_xinfo",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
    "encoding",
    "quick_check",
];

/// Those that the host itself asks for.
const PRAGMAS_OF_THE_HOST: [&str; 3] = ["journal_mode", "data_version", "wal_checkpoint"];

/// Functions that reach beyond the database. Most are not compiled in; that is not this list's to rely on.
const FUNCTIONS_DENIED: [&str; 5] = ["load_extension", "fts3_tokenizer", "writefile", "readfile", "edit"];

/// Virtual tables that need not be created to be used, and show more than tables: pages, statements of others.
const TABLES_DENIED: [&str; 5] = ["sqlite_dbpage", "dbstat", "sqlite_stmt", "bytecode", "tables_used"];

/// Why a text is not run.
#[derive(Debug, PartialEq)]
pub(super) enum Refusal {
    /// It may not; what it would have done.
    Denied(String),
    /// It is no statement with positional parameters.
    Invalid(String),
    /// SQLite says so: the extended result code and its message.
    Sqlite(i32, String),
}

/// What [`check`] found out about a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Checked {
    /// It changes nothing in the database.
    pub(super) read_only: bool,
    /// The highest parameter.
    pub(super) params_count: usize,
}

thread_local! {
    /// Set while [`check`] compiles a plugin's text on this thread; elsewhere the host's own statements pass.
    static CHECKING: Cell<bool> = const { Cell::new(false) };
    /// What the authorizer denied last on this thread.
    static DENIED: RefCell<Option<String>> = const { RefCell::new(None) };
    /// Whether somebody still waits for what this thread does with SQLite, where it does it for somebody else.
    static GIVEN_UP: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
    /// The statement that runs on this thread, by address, and since when.
    static RUNNING: Cell<Option<(usize, Instant)>> = const { Cell::new(None) };
}

/// The text from its first keyword on, where that is one of [`KEYWORDS`].
pub(super) fn screen(text: &str) -> Result<&str, Refusal> {
    if text.contains('\0') {
        return Err(Refusal::Invalid("a statement holds a NUL character".to_owned()));
    }
    let text = skip_blank(text);
    let keyword: String = text.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_uppercase();
    if keyword.is_empty() {
        return Err(Refusal::Invalid("a statement begins with a keyword".to_owned()));
    }
    match KEYWORDS.contains(&keyword.as_str()) {
        true => Ok(text),
        false => Err(Refusal::Denied(format!("the statement {keyword} is the host's alone"))),
    }
}

/// The text after leading space and comments, as SQLite's tokenizer sees them.
fn skip_blank(mut text: &str) -> &str {
    loop {
        text = text.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}', '\u{feff}']);
        let rest = if let Some(comment) = text.strip_prefix("--") {
            comment.split_once('\n').map_or("", |(_, rest)| rest)
        } else if let Some(comment) = text.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, rest)| rest)
        } else {
            return text;
        };
        text = rest;
    }
}

/// Sets a new connection up: limits, what SQLite offers against hostile text, the function of the host's own, and the callbacks.
/// False where there is no memory for it.
pub(super) fn harden(handle: NonNull<ffi::sqlite3>) -> bool {
    static HEAP: Once = Once::new();
    let db = handle.as_ptr();
    // SAFETY: `handle` is an open connection that its owner has locked, so nothing else uses it. The callbacks are
    // functions that live for ever and take no context. The options of `sqlite3_db_config` take an int and a pointer
    // that may be null.
    unsafe {
        HEAP.call_once(|| {
            ffi::sqlite3_hard_heap_limit64(HEAP_BYTES_MAX);
        });
        ffi::sqlite3_limit(db, ffi::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX);
        ffi::sqlite3_limit(db, ffi::SQLITE_LIMIT_ATTACHED, 0);
        for (option, on) in [
            (ffi::SQLITE_DBCONFIG_DEFENSIVE, 1),
            (ffi::SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
            (ffi::SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0),
            (ffi::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0),
            // A mistyped column is an error and not a text.
            (ffi::SQLITE_DBCONFIG_DQS_DML, 0),
        ] {
            ffi::sqlite3_db_config(db, option, on as c_int, ptr::null_mut::<c_int>());
        }
        ffi::sqlite3_set_authorizer(db, Some(authorize), ptr::null_mut());
        // Of the argument alone, and in no schema: other programs have no such function.
        let flags = ffi::SQLITE_UTF8 | ffi::SQLITE_DETERMINISTIC | ffi::SQLITE_DIRECTONLY;
        let (name, nothing) = (c"crc32".as_ptr(), ptr::null_mut());
        let added = ffi::sqlite3_create_function_v2(db, name, 1, flags, nothing, Some(crc32), None, None, None);
        let events = ffi::SQLITE_TRACE_STMT | ffi::SQLITE_TRACE_PROFILE;
        ffi::sqlite3_trace_v2(db, events as c_uint, Some(trace), ptr::null_mut());
        added == ffi::SQLITE_OK
    }
}

/// The function `crc32(text)`, which `wit/sql.wit` promises: SQLite has no hash of its own.
///
/// # Safety
/// Called by SQLite alone, with one argument.
unsafe extern "C" fn crc32(context: *mut ffi::sqlite3_context, _count: c_int, values: *mut *mut ffi::sqlite3_value) {
    // SAFETY: there is one value. Its text is as long as SQLite says behind having made it, and is there until the value is
    // used again.
    unsafe {
        let value = *values;
        if ffi::sqlite3_value_type(value) == ffi::SQLITE_NULL {
            return ffi::sqlite3_result_null(context);
        }
        let text = ffi::sqlite3_value_text(value);
        if text.is_null() {
            return ffi::sqlite3_result_error_nomem(context);
        }
        let bytes = slice::from_raw_parts(text, ffi::sqlite3_value_bytes(value) as usize);
        ffi::sqlite3_result_int64(context, i64::from(crc32fast::hash(bytes)));
    }
}

/// Whether the statement that runs on this thread may go on: nobody has given up waiting for it, and its time is not over.
pub(super) fn goes_on(time: Duration) -> bool {
    let is_given_up = GIVEN_UP.with_borrow(|given_up| given_up.as_ref().is_some_and(|it| it.load(Ordering::Acquire)));
    !is_given_up && RUNNING.get().is_none_or(|(_, since)| since.elapsed() < time)
}

/// Works with SQLite on this thread for somebody who may give up.
pub(super) fn until_given_up<T>(given_up: Arc<AtomicBool>, work: impl FnOnce() -> T) -> T {
    /// Also where `work` panics: the thread is used again.
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            GIVEN_UP.take();
        }
    }
    GIVEN_UP.set(Some(given_up));
    let _forget = Forget;
    work()
}

/// Whether a transaction is open: SQLite ends one by itself after some errors.
pub(super) fn in_transaction(handle: NonNull<ffi::sqlite3>) -> bool {
    // SAFETY: an open connection that its owner has locked.
    unsafe { ffi::sqlite3_get_autocommit(handle.as_ptr()) == 0 }
}

/// Has SQLite compile a text that [`screen`] let through, and says what it is.
pub(super) fn check(handle: NonNull<ffi::sqlite3>, text: &str) -> Result<Checked, Refusal> {
    CHECKING.set(true);
    DENIED.take();
    let checked = compile(handle, text);
    CHECKING.set(false);
    match (checked, DENIED.take()) {
        // Whatever code SQLite has for it: a denied function is an ordinary error.
        (Err(Refusal::Sqlite(..)), Some(denied)) => Err(Refusal::Denied(denied)),
        (checked, _) => checked,
    }
}

fn compile(handle: NonNull<ffi::sqlite3>, text: &str) -> Result<Checked, Refusal> {
    let db = handle.as_ptr();
    let length = c_int::try_from(text.len()).map_err(|_| Refusal::Invalid("a statement is too long".to_owned()))?;
    let mut statement: *mut ffi::sqlite3_stmt = ptr::null_mut();
    let mut tail: *const c_char = ptr::null();
    // SAFETY: an open connection that its owner has locked; `text` is `length` bytes and outlives the call, and both
    // results are written before it returns.
    let code = unsafe { ffi::sqlite3_prepare_v3(db, text.as_ptr().cast(), length, 0, &mut statement, &mut tail) };
    if code != ffi::SQLITE_OK {
        // SAFETY: as above; the message is copied before the connection is used again.
        return Err(unsafe {
            let message = CStr::from_ptr(ffi::sqlite3_errmsg(db)).to_string_lossy().into_owned();
            Refusal::Sqlite(ffi::sqlite3_extended_errcode(db), message)
        });
    }
    let Some(statement) = NonNull::new(statement) else {
        return Err(Refusal::Invalid("a statement is empty".to_owned()));
    };
    // SAFETY: the statement was compiled above and is finalized once, after its last use; names of parameters live as
    // long as it.
    let (read_only, params_count, named) = unsafe {
        let statement = statement.as_ptr();
        let read_only = ffi::sqlite3_stmt_readonly(statement) != 0;
        let count = ffi::sqlite3_bind_parameter_count(statement);
        let named = (1..=count).find_map(|i| {
            let name = NonNull::new(ffi::sqlite3_bind_parameter_name(statement, i).cast_mut())?;
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy();
            (!name.starts_with('?')).then(|| name.into_owned())
        });
        ffi::sqlite3_finalize(statement);
        (read_only, count as usize, named)
    };
    if let Some(name) = named {
        return Err(Refusal::Invalid(format!("a parameter is `?` or `?1`, not `{name}`")));
    }
    // The tail points into the text or at its end.
    let consumed = (tail as usize).saturating_sub(text.as_ptr() as usize);
    let rest = text.get(consumed..).unwrap_or("?");
    if !skip_blank(rest.trim_start_matches(';')).is_empty() {
        return Err(Refusal::Denied("a second statement behind a semicolon".to_owned()));
    }
    Ok(Checked { read_only, params_count })
}

/// SQLite asks here, while it compiles, about each thing that a statement would do.
///
/// # Safety
/// Called by SQLite alone: each text is null or ends with a NUL.
unsafe extern "C" fn authorize(
    _context: *mut c_void,
    action: c_int,
    first: *const c_char,
    second: *const c_char,
    database: *const c_char,
    _trigger: *const c_char,
) -> c_int {
    let text = |text: *const c_char| match text.is_null() {
        true => String::new(),
        // SAFETY: not null, so SQLite's own text.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
    };
    match judge(action, || text(first), || text(second), || text(database)) {
        Ok(()) => ffi::SQLITE_OK,
        Err(denied) => {
            DENIED.set(Some(denied));
            ffi::SQLITE_DENY
        }
    }
}

/// Whether a statement may do this; the texts mean what SQLite's documentation of the action says.
fn judge(
    action: c_int,
    first: impl Fn() -> String,
    second: impl Fn() -> String,
    database: impl Fn() -> String,
) -> Result<(), String> {
    let checking = CHECKING.get();
    let is = |list: &[&str], name: &str| list.iter().any(|entry| entry.eq_ignore_ascii_case(name));
    match action {
        ffi::SQLITE_READ | ffi::SQLITE_INSERT | ffi::SQLITE_UPDATE | ffi::SQLITE_DELETE => {
            let table = first();
            let pragma = table.get(..7).filter(|prefix| prefix.eq_ignore_ascii_case("pragma_")).map(|_| &table[7..]);
            match pragma {
                Some(pragma) if !is(&PRAGMAS, pragma) => Err(format!("the pragma {pragma}")),
                _ if is(&TABLES_DENIED, &table) => Err(format!("the table {table}")),
                _ => Ok(()),
            }
        }
        ffi::SQLITE_FUNCTION => match second() {
            name if is(&FUNCTIONS_DENIED, &name) => Err(format!("the function {name}")),
            _ => Ok(()),
        },
        ffi::SQLITE_PRAGMA => match first() {
            name if is(&PRAGMAS, &name) => Ok(()),
            name if !checking && is(&PRAGMAS_OF_THE_HOST, &name) => Ok(()),
            name => Err(format!("the pragma {name}")),
        },
        ffi::SQLITE_TRANSACTION if !checking => Ok(()),
        // `CREATE TABLE temp.t` is for SQLite no temporary table, except that it stands among them.
        ffi::SQLITE_CREATE_TABLE | ffi::SQLITE_CREATE_INDEX if database().eq_ignore_ascii_case("temp") => {
            Err("temporary tables".to_owned())
        }
        ffi::SQLITE_SELECT
        | ffi::SQLITE_RECURSIVE
        | ffi::SQLITE_CREATE_TABLE
        | ffi::SQLITE_CREATE_INDEX
        | ffi::SQLITE_DROP_INDEX
        | ffi::SQLITE_ALTER_TABLE
        | ffi::SQLITE_ANALYZE
        // Filling a new index; the statement of this name is denied by its keyword.
        | ffi::SQLITE_REINDEX => Ok(()),
        ffi::SQLITE_ATTACH | ffi::SQLITE_DETACH => Err("to attach or detach a database".to_owned()),
        ffi::SQLITE_TRANSACTION | ffi::SQLITE_SAVEPOINT => Err("to begin or end a transaction".to_owned()),
        ffi::SQLITE_CREATE_VTABLE | ffi::SQLITE_DROP_VTABLE => Err("virtual tables".to_owned()),
        ffi::SQLITE_CREATE_TRIGGER | ffi::SQLITE_DROP_TRIGGER => Err("triggers".to_owned()),
        ffi::SQLITE_CREATE_VIEW | ffi::SQLITE_DROP_VIEW => Err("views".to_owned()),
        ffi::SQLITE_DROP_TABLE => Err(format!("to drop the table {}", first())),
        ffi::SQLITE_CREATE_TEMP_TABLE
        | ffi::SQLITE_CREATE_TEMP_INDEX
        | ffi::SQLITE_CREATE_TEMP_TRIGGER
        | ffi::SQLITE_CREATE_TEMP_VIEW
        | ffi::SQLITE_DROP_TEMP_TABLE
        | ffi::SQLITE_DROP_TEMP_INDEX
        | ffi::SQLITE_DROP_TEMP_TRIGGER
        | ffi::SQLITE_DROP_TEMP_VIEW => Err("temporary tables".to_owned()),
        other => Err(format!("the action {other}")),
    }
}

/// SQLite tells here when a statement starts to run and when it ends. One that runs inside another, as a table-valued
/// pragma does, does not count.
///
/// # Safety
/// Called by SQLite alone.
unsafe extern "C" fn trace(event: c_uint, _context: *mut c_void, statement: *mut c_void, _: *mut c_void) -> c_int {
    let address = statement as usize;
    match (event as _, RUNNING.get()) {
        (ffi::SQLITE_TRACE_STMT, running) if running.is_none_or(|(running, _)| running == address) => {
            RUNNING.set(Some((address, Instant::now())));
        }
        (ffi::SQLITE_TRACE_PROFILE, Some((running, _))) if running == address => RUNNING.set(None),
        _ => {}
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_screened_by_its_first_keyword() {
        for text in
            ["SELECT 1", " \n\t-- BEGIN\n/* ; */ select 1", "\u{feff}WITH x AS (SELECT 1) SELECT 1", "values(1)"]
        {
            assert!(screen(text).is_ok(), "{text}");
        }
        for text in
            ["BEGIN", "/**/COMMIT", "-- x\rSELECT 1\nROLLBACK", "pragma x", "ATTACH 'x' AS y", "VACUUM INTO 'x'"]
        {
            assert!(matches!(screen(text), Err(Refusal::Denied(_))), "{text}");
        }
        for text in ["", "  ", ";SELECT 1", "/* SELECT 1", "-- SELECT 1", "(SELECT 1)", "SELECT '\0'"] {
            assert!(matches!(screen(text), Err(Refusal::Invalid(_))), "{text}");
        }
    }
}
