//! RemoveImage: the image with all its names is gone at once, then whatever of its content nothing else needs.
//!
//! Called by `cri/remove_image`. Containers that run the image keep their open layers.

use super::error::ImageError;
use super::reference::Query;
use super::{Digest, Images, blocking};

impl Images {
    /// Removes the image of a name, a digest or an id, with all its names. One that is not there is no error.
    ///
    /// # Errors
    /// A name that is none; a record or a file that cannot be removed, after which the call can be made again.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let query = Query::parse(reference)?;
        let images = self.clone();
        // as a task: a client that goes away leaves nothing half removed
        let removing = tokio::spawn(async move { images.remove_steps(&query).await });
        removing.await.map_err(|_| ImageError::Interrupted(format!("image {reference}")))?
    }

    async fn remove_steps(&self, query: &Query) -> Result<(), ImageError> {
        self.forget(query).await?;
        // Also where the image is gone: an earlier call may have failed here.
        self.collect_in_background().await
    }

    async fn forget(&self, query: &Query) -> Result<(), ImageError> {
        let _writing = self.0.writing.lock().await;
        let Some(id) = self.find_id(query)? else { return Ok(()) };
        let images = self.clone();
        blocking(move || Ok(images.0.documents.remove(&id.hex())?)).await?;
        let mut state = self.state();
        state.records.remove(&id);
        state.users.remove(&id);
        tracing::info!(image = %id, "removed");
        Ok(())
    }

    fn find_id(&self, query: &Query) -> Result<Option<Digest>, ImageError> {
        Ok(self.state().records.find(query)?.map(|record| record.id))
    }
}
