//! Many rows at once, between one piece of memory and statements of SQLite's.
//!
//! A bulk load hands its rows over in one piece ([`Cells`] reads it; `wit/sql.wit` specifies it), and they are bound from
//! there, some at a time; a bulk read gets them in one ([`read`]). As parameters or results of a statement each cell would be
//! a value of its own in the component, in the host and in sqlx, which costs more than SQLite takes for the rows; and a
//! statement for each row that is written costs as much again.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_int},
    ptr::{self, NonNull},
    slice,
};

use larder_model::{Error, Result};
use libsqlite3_sys as ffi;

use crate::capability::sql::{Packed, SqlValue};

/// Cells of a statement. Of more a row gets no cheaper, and it has to be compiled.
const CELLS_AT_ONCE: usize = 320;

/// Rows that are read between two looks at whether anybody waits for them.
const ROWS_BETWEEN_LOOKS: usize = 64;

/// Rows for one table, in the form that `wit/sql.wit` tells.
pub(super) struct Rows {
    /// The statements that append [`Rows::at_once`] of them, and one: to be judged before they run.
    pub(super) texts: [String; 2],
    at_once: usize,
    /// Cells of a row.
    width: usize,
    data: Vec<u8>,
}

impl Rows {
    pub(super) fn new(table: &str, columns: &[String], data: Vec<u8>) -> Rows {
        let width = columns.len().max(1);
        let at_once = (CELLS_AT_ONCE / width).max(1);
        Rows { texts: [at_once, 1].map(|rows| insert(table, columns, rows)), at_once, width, data }
    }

    /// What they take of memory.
    pub(super) fn bytes(&self) -> usize {
        self.data.len() + self.texts.iter().map(String::len).sum::<usize>()
    }

    /// How many there are.
    pub(super) fn count(&self) -> Result<u64> {
        let (mut cells, mut count) = (Cells(&self.data), 0);
        while !cells.0.is_empty() {
            cells.next_bytes()?;
            count += 1;
        }
        match count % self.width {
            0 => Ok((count / self.width) as u64),
            _ => Err(Error::invalid("the rows end in the middle of one")),
        }
    }

    /// Appends them, in a transaction that this begins and commits where it is to, and answers how many. The connection is locked
    /// by the caller. It ends where `goes_on` says no. After an error the transaction may be open, and some of them appended.
    pub(super) fn append(
        &self,
        connection: NonNull<ffi::sqlite3>,
        begins: bool,
        commits: bool,
        goes_on: &dyn Fn() -> bool,
    ) -> std::result::Result<u64, Fault> {
        if begins {
            Statement::compile(connection, "BEGIN IMMEDIATE")?.run(&[])?;
        }
        let check = || if goes_on() { Ok(()) } else { Err(Fault::TookTooLong) };
        let [mut many, mut one] = [None, None];
        let all_at_once = self.at_once * self.width;
        let (mut left, mut cells, mut count) = (Cells(&self.data), Vec::with_capacity(all_at_once), 0);
        while !left.0.is_empty() {
            left.take(all_at_once, &mut cells).map_err(Fault::Contract)?;
            let (statement, text, rows) = match cells.len() == all_at_once {
                true => (&mut many, &self.texts[0], self.at_once),
                false => (&mut one, &self.texts[1], 1),
            };
            let statement = match statement {
                Some(statement) => statement,
                None => statement.insert(Statement::compile(connection, text)?),
            };
            for cells in cells.chunks(rows * self.width) {
                if cells.len() % self.width != 0 {
                    return Err(Fault::Contract(Error::invalid("the rows end in the middle of one")));
                }
                statement.run(cells)?;
                count += rows as u64;
            }
            check()?;
        }
        drop((many, one));
        if commits {
            check()?;
            Statement::compile(connection, "COMMIT")?.run(&[]).map_err(|fault| match fault {
                Fault::Sqlite(code, message) => Fault::Commit(code, message),
                other => other,
            })?;
        }
        Ok(count)
    }
}

/// Runs a statement that only reads and was judged by [`super::guard::check`], and packs its rows until they reach
/// `max_bytes`, but at least one. The connection is locked by the caller. It ends where `goes_on` says no.
pub(super) fn read(
    connection: NonNull<ffi::sqlite3>,
    text: &str,
    params: &[SqlValue],
    max_bytes: usize,
    goes_on: &dyn Fn() -> bool,
) -> std::result::Result<Packed, Fault> {
    // Declared before the statement, which it is bound to, and so there for longer.
    let params = params.iter().map(Cell::of).collect::<Result<Vec<_>>>().map_err(Fault::Contract)?;
    let mut statement = Statement::compile(connection, text)?;
    statement.bind(&params)?;
    let (mut packed, mut rows) = (Packed::default(), 0);
    while statement.step()? {
        if rows > 0 && packed.cells.len() >= max_bytes {
            packed.more = true;
            break;
        }
        statement.pack_row(&mut packed.cells);
        rows += 1;
        if rows % ROWS_BETWEEN_LOOKS == 0 && !goes_on() {
            return Err(Fault::TookTooLong);
        }
    }
    Ok(packed)
}

fn insert(table: &str, columns: &[String], rows: usize) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let names: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
    let row = format!("({})", vec!["?"; columns.len()].join(", "));
    format!("INSERT INTO {} ({}) VALUES {}", quoted(table), names.join(", "), vec![row; rows].join(", "))
}

/// One cell of a row.
#[derive(Debug, PartialEq)]
enum Cell<'a> {
    Null,
    Integer(i64),
    Number(f64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl<'a> Cell<'a> {
    /// A parameter, as SQLite takes it.
    fn of(value: &'a SqlValue) -> Result<Cell<'a>> {
        Ok(match value {
            SqlValue::Null => Cell::Null,
            SqlValue::Boolean(value) => Cell::Integer(i64::from(*value)),
            SqlValue::Integer(value) => Cell::Integer(*value),
            SqlValue::Number(value) => Cell::number(*value)?,
            SqlValue::Text(text) | SqlValue::Json(text) | SqlValue::Decimal(text) => Cell::Text(text),
            SqlValue::Blob(bytes) => Cell::Blob(bytes),
        })
    }

    /// SQLite would make NULL of what is no number.
    fn number(value: f64) -> Result<Cell<'a>> {
        if value.is_nan() { Err(Error::invalid("a cell is not a number")) } else { Ok(Cell::Number(value)) }
    }
}

/// The cells that are left in the bytes that a component gave.
struct Cells<'a>(&'a [u8]);

impl<'a> Cells<'a> {
    /// Reads up to `max` of them in place of what `into` has.
    fn take(&mut self, max: usize, into: &mut Vec<Cell<'a>>) -> Result<()> {
        into.clear();
        while into.len() < max && !self.0.is_empty() {
            into.push(self.next()?);
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Cell<'a>> {
        let (kind, bytes) = self.next_bytes()?;
        let number = || bytes.first_chunk().copied().unwrap_or_default();
        Ok(match kind {
            b'i' => Cell::Integer(i64::from_le_bytes(number())),
            b'f' => Cell::number(f64::from_le_bytes(number()))?,
            b't' => Cell::Text(str::from_utf8(bytes).map_err(|_| Error::invalid("a text is not UTF-8"))?),
            b'b' => Cell::Blob(bytes),
            _ => Cell::Null,
        })
    }

    /// The kind of the next one, and what stands behind it.
    fn next_bytes(&mut self) -> Result<(u8, &'a [u8])> {
        let torn = || Error::invalid("the rows end in the middle of a cell");
        let (&kind, mut rest) = self.0.split_first().ok_or_else(torn)?;
        let length = match kind {
            b'n' => 0,
            b'i' | b'f' => 8,
            b't' | b'b' => {
                let (length, after) = rest.split_first_chunk().ok_or_else(torn)?;
                rest = after;
                u32::from_le_bytes(*length) as usize
            }
            kind => return Err(Error::invalid(format!("there is no kind of cell {kind:#04x}"))),
        };
        let (bytes, rest) = rest.split_at_checked(length).ok_or_else(torn)?;
        self.0 = rest;
        Ok((kind, bytes))
    }
}

/// Why rows were not stored, or not read.
pub(super) enum Fault {
    /// SQLite says so: the extended result code and its message.
    Sqlite(i32, String),
    /// The same, of the COMMIT.
    Commit(i32, String),
    Contract(Error),
    TookTooLong,
}

/// A statement that is compiled for a connection. Whoever has it keeps the connection locked for as long.
struct Statement {
    statement: NonNull<ffi::sqlite3_stmt>,
    connection: NonNull<ffi::sqlite3>,
}

impl Statement {
    /// `text` was judged by [`super::guard::check`], or is the host's own, and the connection is locked by the caller.
    fn compile(connection: NonNull<ffi::sqlite3>, text: &str) -> std::result::Result<Statement, Fault> {
        let invalid = |_| Fault::Contract(Error::invalid("a statement is too long"));
        let length = c_int::try_from(text.len()).map_err(invalid)?;
        let mut statement: *mut ffi::sqlite3_stmt = ptr::null_mut();
        // SAFETY: an open connection that is locked; `text` is `length` bytes and outlives the call.
        let code = unsafe {
            ffi::sqlite3_prepare_v3(
                connection.as_ptr(),
                text.as_ptr().cast(),
                length,
                0,
                &mut statement,
                ptr::null_mut(),
            )
        };
        match NonNull::new(statement) {
            Some(statement) if code == ffi::SQLITE_OK => Ok(Statement { statement, connection }),
            _ => Err(said(connection)),
        }
    }

    /// Runs it with these, of which it takes so many.
    fn run(&mut self, cells: &[Cell<'_>]) -> std::result::Result<(), Fault> {
        let ran = self.bind(cells).and_then(|()| self.step().map(drop));
        // SAFETY: the statement is compiled, and its connection locked. After this the statement holds nothing of what it was given.
        unsafe {
            ffi::sqlite3_reset(self.statement.as_ptr());
            ffi::sqlite3_clear_bindings(self.statement.as_ptr());
        }
        ran
    }

    /// Runs it up to its next row, or to its end. What is bound to it must still be there.
    fn step(&mut self) -> std::result::Result<bool, Fault> {
        // SAFETY: the statement is compiled, and its connection locked.
        match unsafe { ffi::sqlite3_step(self.statement.as_ptr()) } {
            ffi::SQLITE_DONE => Ok(false),
            ffi::SQLITE_ROW => Ok(true),
            _ => Err(said(self.connection)),
        }
    }

    /// Packs the row that [`Statement::step`] came to.
    fn pack_row(&mut self, into: &mut Vec<u8>) {
        let statement = self.statement.as_ptr();
        // SAFETY: the statement stands at a row, and its connection is locked. What a column's pointer leads to is copied
        // before anything else is asked of the statement; it is as long as SQLite says behind having made it, and may be
        // null where that is 0.
        unsafe {
            for column in 0..ffi::sqlite3_column_count(statement) {
                let (kind, bytes) = match ffi::sqlite3_column_type(statement, column) {
                    ffi::SQLITE_INTEGER => {
                        into.push(b'i');
                        into.extend_from_slice(&ffi::sqlite3_column_int64(statement, column).to_le_bytes());
                        continue;
                    }
                    ffi::SQLITE_FLOAT => {
                        into.push(b'f');
                        into.extend_from_slice(&ffi::sqlite3_column_double(statement, column).to_le_bytes());
                        continue;
                    }
                    ffi::SQLITE_TEXT => (b't', ffi::sqlite3_column_text(statement, column)),
                    ffi::SQLITE_BLOB => (b'b', ffi::sqlite3_column_blob(statement, column).cast()),
                    _ => {
                        into.push(b'n');
                        continue;
                    }
                };
                let length = ffi::sqlite3_column_bytes(statement, column);
                let bytes = match bytes.is_null() {
                    true => &[],
                    false => slice::from_raw_parts(bytes, length as usize),
                };
                into.push(kind);
                into.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                into.extend_from_slice(bytes);
            }
        }
    }

    fn bind(&mut self, cells: &[Cell<'_>]) -> std::result::Result<(), Fault> {
        let statement = self.statement.as_ptr();
        for (position, cell) in (1..).zip(cells) {
            // SAFETY: the statement is compiled and reset, and its connection locked. SQLite does not copy what it is
            // given: `run` has it forget the bytes before they can go, and in `read` the statement goes before them.
            let code = unsafe {
                match cell {
                    Cell::Null => ffi::sqlite3_bind_null(statement, position),
                    Cell::Integer(value) => ffi::sqlite3_bind_int64(statement, position, *value),
                    Cell::Number(value) => ffi::sqlite3_bind_double(statement, position, *value),
                    Cell::Text(text) => ffi::sqlite3_bind_text64(
                        statement,
                        position,
                        text.as_ptr().cast(),
                        text.len() as u64,
                        ffi::SQLITE_STATIC(),
                        ffi::SQLITE_UTF8 as u8,
                    ),
                    // Without a pointer it would be NULL.
                    Cell::Blob(bytes) => ffi::sqlite3_bind_blob64(
                        statement,
                        position,
                        bytes.as_ptr().cast(),
                        bytes.len() as u64,
                        ffi::SQLITE_STATIC(),
                    ),
                }
            };
            if code != ffi::SQLITE_OK {
                return Err(said(self.connection));
            }
        }
        Ok(())
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: compiled by `compile`, and not used after this.
        unsafe { ffi::sqlite3_finalize(self.statement.as_ptr()) };
    }
}

/// What the connection says of the last call.
fn said(connection: NonNull<ffi::sqlite3>) -> Fault {
    // SAFETY: an open connection that is locked; the message is copied before it is used again.
    unsafe {
        let message = CStr::from_ptr(ffi::sqlite3_errmsg(connection.as_ptr())).to_string_lossy().into_owned();
        Fault::Sqlite(ffi::sqlite3_extended_errcode(connection.as_ptr()), message)
    }
}
