//! From a file or folder to an image in the store.

mod error;

use std::path::Path;

use crate::image::ImportedImage;
use crate::reference::Reference;
use crate::store::Store;

pub use error::ImportError;

impl Store {
    /// Brings the image in `path` (an OCI layout as folder or tar, or a docker archive; tars may be compressed)
    /// into the store, under `name` or else the names that it carries itself.
    ///
    /// # Errors
    /// See [`ImportError`]. Nothing half-made stays.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&Reference>,
    ) -> Result<ImportedImage, ImportError> {
        let _ = name;
        Err(ImportError::NotAnImage {
            path: path.to_owned(),
            reason: "not yet".to_owned(),
        })
    }
}
