//! Text on the disk, compressed or not: from its beginning in pieces, and any part of it by its place.
//!
//! Nothing here keeps a file's text: a document of any size is read through buffers of about a megabyte.

use std::{io::Write, rc::Rc};

use flate2::write::MultiGzDecoder;
use larder_guest::Files;
use larder_model::{Error, ErrorKind, Result};

use crate::gzip;

/// Read at once where what follows is wanted too.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Compressed bytes given to a decoder at once: they may be a thousand times as much text.
const FEED_BYTES: usize = 16 << 10;
/// Parts that lie no further apart are read as one.
const GAP_BYTES: u64 = 16 << 10;

/// How the text lies in its file.
#[derive(Debug, Clone)]
pub(crate) enum Form {
    Plain,
    /// Compressed in members that can be read on their own.
    Blocks(Rc<[Block]>),
    /// Compressed by somebody else: only read from the beginning.
    Stream,
}

/// Where a member begins in the file and in the text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) file: u64,
    pub(crate) text: u64,
}

/// The file is not what it was when it was looked at: whoever called looks again.
pub(crate) fn changed(path: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{path} changes while it is read"))
}

fn no_gzip(path: &str, error: &std::io::Error) -> Error {
    Error::corrupt(format!("{path} is not valid gzip: {error}"))
}

/// Bytes of the file as they are, all that were asked for.
pub(crate) fn read_exactly(files: &impl Files, path: &str, offset: u64, count: usize) -> Result<Vec<u8>> {
    let wanted = u32::try_from(count).map_err(|_| changed(path))?;
    let mut bytes = files.read(path, offset, wanted)?.ok_or_else(|| changed(path))?;
    // The host brings a bounded part a call.
    while bytes.len() < count {
        let part = files.read(path, offset + bytes.len() as u64, (count - bytes.len()) as u32)?;
        match part {
            Some(part) if !part.is_empty() => bytes.extend_from_slice(&part),
            _ => return Err(changed(path)),
        }
    }
    Ok(bytes)
}

/// A text from its beginning.
pub(crate) struct Pieces<'a, F: Files> {
    files: &'a F,
    path: &'a str,
    /// Of the file.
    size: u64,
    position: u64,
    /// How much text came.
    text: u64,
    mode: Mode,
}

enum Mode {
    Unknown,
    Plain,
    Blocks {
        blocks: Vec<Block>,
        /// Compressed bytes that were read and not used yet.
        ahead: Vec<u8>,
    },
    Stream(Box<MultiGzDecoder<Vec<u8>>>),
}

impl<'a, F: Files> Pieces<'a, F> {
    pub(crate) fn new(files: &'a F, path: &'a str, size: u64) -> Self {
        Pieces { files, path, size, position: 0, text: 0, mode: Mode::Unknown }
    }

    fn of_stream(files: &'a F, path: &'a str, size: u64) -> Self {
        let mode = Mode::Stream(Box::new(MultiGzDecoder::new(Vec::new())));
        Pieces { mode, ..Pieces::new(files, path, size) }
    }

    fn read(&mut self, count: usize) -> Result<Vec<u8>> {
        let count = (self.size - self.position).min(count as u64) as usize;
        if count == 0 {
            return Ok(Vec::new());
        }
        let bytes = read_exactly(self.files, self.path, self.position, count)?;
        self.position += count as u64;
        Ok(bytes)
    }

    /// The next piece of text, none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let piece = loop {
            match &mut self.mode {
                Mode::Unknown => {
                    let start = self.read(PIECE_BYTES)?;
                    if !gzip::is_gzip(&start) {
                        self.mode = Mode::Plain;
                        break start;
                    }
                    self.mode = Mode::Blocks { blocks: Vec::new(), ahead: start };
                }
                Mode::Plain => break self.read(PIECE_BYTES)?,
                Mode::Blocks { .. } => match self.next_blocks()? {
                    Some(text) => break text,
                    // What follows was compressed by somebody else.
                    None => continue,
                },
                Mode::Stream(_) => break self.next_of_stream()?,
            }
        };
        self.text += piece.len() as u64;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// Some blocks' text, or none where a member does not say its size.
    fn next_blocks(&mut self) -> Result<Option<Vec<u8>>> {
        let Mode::Blocks { mut blocks, mut ahead } = std::mem::replace(&mut self.mode, Mode::Unknown) else {
            unreachable!("only called in this mode")
        };
        let mut text = Vec::with_capacity(PIECE_BYTES + gzip::BLOCK_BYTES);
        let mut used = 0;
        let is_whole = |ahead: &[u8]| gzip::block_size(ahead).is_some_and(|size| size <= ahead.len());
        while text.len() < PIECE_BYTES {
            if !is_whole(&ahead[used..]) {
                ahead.drain(..used);
                used = 0;
                let more = self.read(PIECE_BYTES)?;
                ahead.extend_from_slice(&more);
            }
            if ahead.len() == used {
                break;
            }
            let file = self.position - (ahead.len() - used) as u64;
            match gzip::block_size(&ahead[used..]) {
                Some(size) if size <= ahead.len() - used => {
                    blocks.push(Block { file, text: self.text + text.len() as u64 });
                    let inflated = gzip::inflate_block(&ahead[used..used + size], &mut text);
                    inflated.map_err(|error| no_gzip(self.path, &error))?;
                    used += size;
                }
                _ => {
                    let mut decoder = Box::new(MultiGzDecoder::new(text));
                    let fed = decoder.write_all(&ahead[used..]);
                    fed.map_err(|error| no_gzip(self.path, &error))?;
                    self.mode = Mode::Stream(decoder);
                    return Ok(None);
                }
            }
        }
        ahead.drain(..used);
        self.mode = Mode::Blocks { blocks, ahead };
        Ok(Some(text))
    }

    fn next_of_stream(&mut self) -> Result<Vec<u8>> {
        loop {
            let fed = self.read(FEED_BYTES)?;
            let Mode::Stream(decoder) = &mut self.mode else { unreachable!("only called in this mode") };
            let done = if fed.is_empty() { decoder.try_finish() } else { decoder.write_all(&fed) };
            done.map_err(|error| no_gzip(self.path, &error))?;
            let text = std::mem::take(decoder.get_mut());
            if !text.is_empty() || fed.is_empty() {
                return Ok(text);
            }
        }
    }

    /// What was found out, once the text is at its end.
    pub(crate) fn into_form(self) -> Form {
        match self.mode {
            Mode::Unknown | Mode::Plain => Form::Plain,
            Mode::Blocks { blocks, .. } => Form::Blocks(blocks.into()),
            Mode::Stream(_) => Form::Stream,
        }
    }
}

/// Parts of a text by their place. Read in ascending order they are read ahead.
pub(crate) struct Reader<'a, F: Files> {
    files: &'a F,
    path: &'a str,
    size: u64,
    form: &'a Form,
    buffer: Vec<u8>,
    /// Where the buffer begins in the text.
    start: u64,
    stream: Option<Pieces<'a, F>>,
}

impl<'a, F: Files> Reader<'a, F> {
    /// `size` is the file's.
    pub(crate) fn new(files: &'a F, path: &'a str, size: u64, form: &'a Form) -> Self {
        Reader { files, path, size, form, buffer: Vec::new(), start: 0, stream: None }
    }

    /// Of the file.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn end(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// The part of `len` bytes at `offset`.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let end = offset + len as u64;
        if offset < self.start || end > self.end() {
            match self.form {
                Form::Plain => self.fill_plain(offset, len)?,
                Form::Blocks(blocks) => self.fill_blocks(blocks, offset, end)?,
                Form::Stream => self.fill_stream(offset, end)?,
            }
        }
        let from = (offset - self.start) as usize;
        self.buffer.get(from..from + len).ok_or_else(|| changed(self.path))
    }

    fn fill_plain(&mut self, offset: u64, len: usize) -> Result<()> {
        let goes_on = offset >= self.start && offset <= self.end() + GAP_BYTES && self.end() > 0;
        let count = if goes_on { len.max(PIECE_BYTES) } else { len };
        let count = (self.size.saturating_sub(offset)).min(count as u64) as usize;
        self.buffer = read_exactly(self.files, self.path, offset, count)?;
        self.start = offset;
        Ok(())
    }

    fn fill_blocks(&mut self, blocks: &[Block], offset: u64, end: u64) -> Result<()> {
        let first = blocks.partition_point(|block| block.text <= offset).saturating_sub(1);
        let behind = blocks.partition_point(|block| block.text < end);
        let (Some(from), to) = (blocks.get(first), blocks.get(behind)) else { return Err(changed(self.path)) };
        let count = to.map_or(self.size, |to| to.file).saturating_sub(from.file) as usize;
        let members = read_exactly(self.files, self.path, from.file, count)?;
        self.buffer.clear();
        self.start = from.text;
        let mut rest = &members[..];
        while self.end() < end {
            let Some((member, after)) = gzip::block_size(rest).and_then(|size| rest.split_at_checked(size)) else {
                return Err(changed(self.path));
            };
            gzip::inflate_block(member, &mut self.buffer).map_err(|error| no_gzip(self.path, &error))?;
            rest = after;
        }
        Ok(())
    }

    fn fill_stream(&mut self, offset: u64, end: u64) -> Result<()> {
        if self.stream.is_none() || offset < self.start {
            self.stream = Some(Pieces::of_stream(self.files, self.path, self.size));
            self.buffer.clear();
            self.start = 0;
        }
        let behind = offset.min(self.end()) - self.start;
        self.buffer.drain(..behind as usize);
        self.start += behind;
        while self.end() < end {
            let stream = self.stream.as_mut().expect("it was just made");
            let Some(piece) = stream.next()? else { return Err(changed(self.path)) };
            if self.end() <= offset {
                self.start = self.end();
                self.buffer = piece;
            } else {
                self.buffer.extend_from_slice(&piece);
            }
        }
        Ok(())
    }
}
