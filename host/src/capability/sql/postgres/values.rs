//! Parameters and cells in the binary form of PostgreSQL's protocol.
//!
//! A parameter is sent as what the prepared statement says it is, so that one text takes the same types whatever its
//! values are. A type that is not here takes a cast in the statement: `$1::text::timestamp`, `"at"::text`.

use larder_model::{Error, ErrorKind, Result};
use sqlx::{
    Decode, Encode, Postgres, Row, Type, TypeInfo, ValueRef,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgArguments, PgRow, PgTypeInfo, types::Oid},
    types::BigDecimal,
};

use super::super::SqlValue;

// The numbers of types that every server has: `pg_type.oid`.
const BOOL: u32 = 16;
const BYTEA: u32 = 17;
const INT8: u32 = 20;
const INT2: u32 = 21;
const INT4: u32 = 23;
const OID: u32 = 26;
const JSON: u32 = 114;
const JSONB: u32 = 3802;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const NUMERIC: u32 = 1700;
/// `char`, `name`, `text`, `unknown`, `bpchar`, `varchar`, `cstring`.
const TEXTS: [u32; 7] = [18, 19, 25, 705, 1042, 1043, 2275];

/// The form of `jsonb` that there is.
const JSONB_VERSION: u8 = 1;

/// The parameters, each as the statement takes it.
pub(super) fn arguments(params: Vec<SqlValue>, types: &[PgTypeInfo]) -> Result<PgArguments> {
    use sqlx::Arguments as _;
    if params.len() != types.len() {
        return Err(Error::invalid(format!("a statement of {} parameters was given {}", types.len(), params.len())));
    }
    let mut arguments = PgArguments::default();
    arguments.reserve(params.len(), 0);
    for (i, (param, ty)) in params.into_iter().zip(types).enumerate() {
        let bytes = encode(param, ty)
            .map_err(|problem| Error { message: format!("${}: {}", i + 1, problem.message), ..problem })?;
        arguments
            .add(Raw { ty: ty.clone(), bytes })
            .map_err(|error| Error::invalid(format!("${} cannot be sent: {error}", i + 1)))?;
    }
    Ok(arguments)
}

/// A value as it is sent; none for NULL.
struct Raw {
    ty: PgTypeInfo,
    bytes: Option<Vec<u8>>,
}

impl Type<Postgres> for Raw {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TEXTS[2]))
    }
}

impl Encode<'_, Postgres> for Raw {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> std::result::Result<IsNull, BoxDynError> {
        let Some(bytes) = &self.bytes else { return Ok(IsNull::Yes) };
        buffer.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.ty.clone())
    }

    fn size_hint(&self) -> usize {
        self.bytes.as_ref().map_or(0, Vec::len)
    }
}

fn encode(value: SqlValue, ty: &PgTypeInfo) -> Result<Option<Vec<u8>>> {
    let out_of_range = || Error::new(ErrorKind::Rejected, format!("a number is out of range for {}", ty.name()));
    let oid = ty.oid().map_or(0, |oid| oid.0);
    Ok(Some(match (value, oid) {
        (SqlValue::Null, _) => return Ok(None),
        (SqlValue::Boolean(value), BOOL) => vec![value.into()],
        (SqlValue::Integer(value), INT2) => i16::try_from(value).map_err(|_| out_of_range())?.to_be_bytes().to_vec(),
        (SqlValue::Integer(value), INT4) => i32::try_from(value).map_err(|_| out_of_range())?.to_be_bytes().to_vec(),
        (SqlValue::Integer(value), INT8) => value.to_be_bytes().to_vec(),
        (SqlValue::Integer(value), OID) => u32::try_from(value).map_err(|_| out_of_range())?.to_be_bytes().to_vec(),
        (SqlValue::Integer(value), FLOAT8) => (value as f64).to_be_bytes().to_vec(),
        (SqlValue::Number(value), FLOAT8) => value.to_be_bytes().to_vec(),
        (SqlValue::Number(value), FLOAT4) => (value as f32).to_be_bytes().to_vec(),
        (SqlValue::Text(text) | SqlValue::Json(text) | SqlValue::Decimal(text), oid) if TEXTS.contains(&oid) => {
            // The server says so too, but it ends the transaction with it.
            match text.contains('\0') {
                true => return Err(Error::new(ErrorKind::Rejected, "PostgreSQL's text has no NUL character")),
                false => text.into_bytes(),
            }
        }
        (SqlValue::Json(text) | SqlValue::Text(text), JSON) => text.into_bytes(),
        (SqlValue::Json(text) | SqlValue::Text(text), JSONB) => [&[JSONB_VERSION], text.as_bytes()].concat(),
        (SqlValue::Blob(bytes), BYTEA) => bytes,
        (SqlValue::Decimal(text), NUMERIC) => decimal(&text)?,
        (SqlValue::Integer(value), NUMERIC) => decimal(&value.to_string())?,
        (value, _) => {
            let case = match value {
                SqlValue::Null => "null",
                SqlValue::Boolean(_) => "a boolean",
                SqlValue::Integer(_) => "an integer",
                SqlValue::Number(_) => "a number",
                SqlValue::Text(_) => "a text",
                SqlValue::Blob(_) => "a blob",
                SqlValue::Json(_) => "JSON",
                SqlValue::Decimal(_) => "a decimal",
            };
            let name = ty.name().to_ascii_lowercase();
            return Err(Error::invalid(format!(
                "{case} is given where the statement takes {name}: cast it in the statement, as in `$1::text::{name}`"
            )));
        }
    }))
}

fn decimal(text: &str) -> Result<Vec<u8>> {
    let number: BigDecimal =
        text.parse().map_err(|_| Error::invalid(format!("not a decimal number: {}", text.escape_debug())))?;
    let mut buffer = PgArgumentBuffer::default();
    match Encode::<Postgres>::encode_by_ref(&number, &mut buffer) {
        Ok(_) => Ok(buffer.to_vec()),
        Err(_) => Err(Error::new(ErrorKind::Rejected, "a number is out of range for numeric")),
    }
}

/// Appends the row's cells, and says how many bytes they hold.
pub(super) fn decode(row: &PgRow, cells: &mut Vec<SqlValue>) -> Result<usize> {
    let mut size = 0;
    for i in 0..row.len() {
        let raw = row.try_get_raw(i).map_err(super::translate)?;
        if raw.is_null() {
            cells.push(SqlValue::Null);
            continue;
        }
        let ty = raw.type_info().into_owned();
        let oid = ty.oid().map_or(0, |oid| oid.0);
        let bytes = raw.as_bytes().map_err(|_| unreadable(row, i, &ty))?;
        size += bytes.len();
        let fixed = || unreadable(row, i, &ty);
        cells.push(match oid {
            BOOL => SqlValue::Boolean(bytes != [0]),
            INT2 => SqlValue::Integer(i16::from_be_bytes(bytes.try_into().map_err(|_| fixed())?).into()),
            INT4 => SqlValue::Integer(i32::from_be_bytes(bytes.try_into().map_err(|_| fixed())?).into()),
            INT8 => SqlValue::Integer(i64::from_be_bytes(bytes.try_into().map_err(|_| fixed())?)),
            OID => SqlValue::Integer(u32::from_be_bytes(bytes.try_into().map_err(|_| fixed())?).into()),
            FLOAT4 => SqlValue::Number(f32::from_be_bytes(bytes.try_into().map_err(|_| fixed())?).into()),
            FLOAT8 => SqlValue::Number(f64::from_be_bytes(bytes.try_into().map_err(|_| fixed())?)),
            BYTEA => SqlValue::Blob(bytes.to_vec()),
            JSON => SqlValue::Json(text(bytes).ok_or_else(fixed)?),
            JSONB => SqlValue::Json(bytes.split_first().and_then(|(_, bytes)| text(bytes)).ok_or_else(fixed)?),
            NUMERIC => {
                let number = row.try_get_raw(i).ok().and_then(|raw| <BigDecimal as Decode<Postgres>>::decode(raw).ok());
                SqlValue::Decimal(number.ok_or_else(fixed)?.to_plain_string())
            }
            oid if TEXTS.contains(&oid) => SqlValue::Text(text(bytes).ok_or_else(fixed)?),
            _ => return Err(unreadable(row, i, &ty)),
        });
    }
    Ok(size)
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

fn unreadable(row: &PgRow, i: usize, ty: &PgTypeInfo) -> Error {
    let column = sqlx::Column::name(&row.columns()[i]);
    let name = ty.name().to_ascii_lowercase();
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "column `{column}` has the type {name}, which is not read: cast it in the statement, as in `\"{column}\"::text`"
        ),
    )
}
