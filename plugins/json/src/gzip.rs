//! Compressed documents: gzip members of at most 64 KiB of text that say their own size, so that one entity can be read
//! without what stands before it. That is BGZF as `bgzip` writes it (the SAM specification, section 4.1); to `gunzip` and
//! every other reader it is a gzip file like any other.

use std::io::{self, Read, Write};

use flate2::{Compression, GzBuilder, read::GzDecoder};

/// Text of one member. A member's size is kept in 16 bits, and what cannot be compressed grows a little.
pub(crate) const BLOCK_BYTES: usize = 0xff00;
/// What a header takes up to and with the member's size.
pub(crate) const HEADER_BYTES: usize = 18;
/// The extra field up to the member's size: `BC`, and a length of two.
const EXTRA: [u8; 4] = [b'B', b'C', 2, 0];

pub(crate) fn is_gzip(start: &[u8]) -> bool {
    start.starts_with(&[0x1f, 0x8b])
}

/// One member. Of no text, it is the one that ends a file.
pub(crate) fn block(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().extra([&EXTRA[..], &[0, 0]].concat()).write(Vec::new(), Compression::fast());
    encoder.write_all(text)?;
    let mut member = encoder.finish()?;
    let size = u16::try_from(member.len() - 1).map_err(|_| io::Error::other("a member is larger than 64 KiB"))?;
    member[HEADER_BYTES - 2..HEADER_BYTES].copy_from_slice(&size.to_le_bytes());
    Ok(member)
}

/// The size of the member that begins with `header`, where it says so.
pub(crate) fn block_size(header: &[u8]) -> Option<usize> {
    let header = header.get(..HEADER_BYTES)?;
    let says_size = is_gzip(header) && header[3] == 4 && header[10..12] == [6, 0] && header[12..16] == EXTRA;
    let size = usize::from(u16::from_le_bytes([header[16], header[17]])) + 1;
    (says_size && size > HEADER_BYTES).then_some(size)
}

/// Appends the text of one member.
pub(crate) fn inflate_block(member: &[u8], text: &mut Vec<u8>) -> io::Result<()> {
    GzDecoder::new(member).read_to_end(text).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_says_its_size_and_gives_its_text_back() {
        let mut noise = vec![0; BLOCK_BYTES];
        let mut state = 1_u32;
        for byte in &mut noise {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        for text in [&b""[..], b"text", &noise] {
            let member = block(text).unwrap();
            assert_eq!(block_size(&member), Some(member.len()));
            let mut back = Vec::new();
            inflate_block(&member, &mut back).unwrap();
            assert_eq!(back, text);
        }
        assert_eq!(block_size(b"\x1f\x8b\x08\x00 and no extra field"), None);
    }
}
