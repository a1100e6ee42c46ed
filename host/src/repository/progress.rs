//! Whoever follows the cursors of a strategy comes to an end: cursors that come again are found, and so are more pages than
//! there can be.

use super::Repository;
use crate::error::{Error, Result};
use larder_model::ErrorKind;

/// The pages of one query, or of one segment of a scan.
///
/// Cursors that go in a circle are found as Brent finds a cycle: one cursor is kept, a later one each time that the number
/// of pages has doubled. So a circle is noticed after at most three times its length and what led to it, whatever the
/// strategy, and without a list of all cursors.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pages: u64,
    next_kept_at: u64,
    kept: Option<Vec<u8>>,
}

impl Progress {
    /// A page came, and this is where the next one begins.
    ///
    /// # Errors
    /// `corrupt` where the cursors go in a circle, `limit-exceeded` where there are too many of them.
    pub(crate) fn turn(&mut self, repository: &Repository, next: Option<&[u8]>) -> Result<()> {
        let Some(next) = next else { return Ok(()) };
        if self.kept.as_deref() == Some(next) {
            return Err(repository.misbehaved("gives a cursor that it gave before"));
        }
        self.pages += 1;
        let pages_max = repository.settings().pages_max;
        if self.pages >= pages_max {
            let message = format!("plugin `{}` answers with more than {pages_max} pages", repository.plugin().name);
            return Err(Error::contract(ErrorKind::LimitExceeded, message)
                .hint("raise `plugins.pages_max` in the configuration if the data needs it"));
        }
        if self.pages > self.next_kept_at {
            self.next_kept_at = self.pages * 2;
            self.kept = Some(next.to_vec());
        }
        Ok(())
    }
}
